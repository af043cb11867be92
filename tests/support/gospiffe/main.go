// With --parse FILE: what Go's parser says of each certificate, one in base64 on each line.
//
// Otherwise a client of the SPIFFE Workload API with the official Go library: prints one line for each
// X.509-SVID that it gets, after verifying it against the bundle that came with it.
package main

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"os"
	"strings"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	if os.Args[1] == "--parse" {
		parse(os.Args[2])
		return
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(address string) error {
	ctx := context.Background()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(address)))
	if err != nil {
		return err
	}
	defer source.Close()
	for {
		svid, err := source.GetX509SVID()
		if err != nil {
			return err
		}
		raw := [][]byte{}
		for _, certificate := range svid.Certificates {
			raw = append(raw, certificate.Raw)
		}
		id, _, err := x509svid.ParseAndVerify(raw, source)
		if err != nil {
			return err
		}
		fmt.Printf("%s %x\n", id, svid.Certificates[0].SerialNumber)
		if err := source.WaitUntilUpdated(ctx); err != nil {
			return err
		}
	}
}

func parse(name string) {
	content, err := os.ReadFile(name)
	if err != nil {
		panic(err)
	}
	for _, line := range strings.Fields(string(content)) {
		der, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			panic(err)
		}
		if _, err := x509.ParseCertificate(der); err != nil {
			fmt.Println(strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Println("ok")
		}
	}
}
