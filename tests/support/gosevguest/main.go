// Judges SEV-SNP reports with google/go-sev-guest: one JSON object a line, one verdict a line.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	pb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"
)

type asked struct {
	Report  []byte `json:"report"` // base64, as encoding/json has it
	Leaf    []byte `json:"leaf"`
	Issuer  []byte `json:"issuer"`
	Root    []byte `json:"root"`
	Product string `json:"product"` // "Milan", "Genoa", "Turin"
	Vlek    bool   `json:"vlek"`
	At      string `json:"at"` // RFC 3339
}

func judge(line []byte) error {
	var one asked
	if err := json.Unmarshal(line, &one); err != nil {
		return err
	}
	at, err := time.Parse(time.RFC3339, one.At)
	if err != nil {
		return err
	}
	report, err := abi.ReportToProto(one.Report)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	root, err := trust.ParseCert(one.Root)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	issuer, err := trust.ParseCert(one.Issuer)
	if err != nil {
		return fmt.Errorf("issuer: %w", err)
	}
	chain := &pb.CertificateChain{ArkCert: one.Root}
	certs := &trust.ProductCerts{Ark: root}
	if one.Vlek {
		chain.VlekCert = one.Leaf
		certs.Asvk = issuer
	} else {
		chain.VcekCert, chain.AskCert = one.Leaf, one.Issuer
		certs.Ask = issuer
	}
	product, err := kds.ParseProductLine(one.Product)
	if err != nil {
		return err
	}
	if fms := report.GetCpuid1EaxFms(); fms != 0 {
		product = abi.SevProductFromCpuid1Eax(fms)
	}
	options := &verify.Options{
		DisableCertFetching: true,
		Now:                 at,
		Product:             product,
		TrustedRoots: map[string][]*trust.AMDRootCerts{
			one.Product: {{Product: one.Product, ProductLine: one.Product, ProductCerts: certs}},
		},
	}
	return verify.SnpAttestation(&pb.Attestation{Report: report, CertificateChain: chain}, options)
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if err := judge(lines.Bytes()); err != nil {
			fmt.Printf("refused: %v\n", err)
		} else {
			fmt.Println("accepted")
		}
	}
}
