//! Judges SEV-SNP reports with the crate `sev`: one JSON object a line, one verdict a line.

use base64::prelude::{Engine, BASE64_STANDARD};
use sev::certs::snp::{ca, Certificate, Chain, Verifiable};
use sev::firmware::guest::AttestationReport;
use sev::parser::ByteParser;
use std::io::{stdin, BufRead};

fn judge(line: &str) -> Result<(), String> {
    let one: serde_json::Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let bytes = |name: &str| {
        BASE64_STANDARD
            .decode(one[name].as_str().unwrap_or_default())
            .map_err(|e| e.to_string())
    };
    let certificate =
        |name: &str| Certificate::from_der(&bytes(name)?).map_err(|e| format!("{name}: {e}"));
    let report = AttestationReport::from_bytes(&bytes("report")?).map_err(|e| format!("report: {e}"))?;
    let chain = Chain {
        ca: ca::Chain { ark: certificate("root")?, ask: certificate("issuer")? },
        vek: certificate("leaf")?,
    };
    (&chain, &report).verify().map_err(|e| e.to_string())
}

fn main() {
    for line in stdin().lock().lines() {
        match judge(&line.expect("a line")) {
            Ok(()) => println!("accepted"),
            Err(error) => println!("refused: {error}"),
        }
    }
}
