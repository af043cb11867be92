// A secret discovery server of Istio to measure: its own package security/pkg/nodeagent/sds, over a
// certificate that this program makes.
//
// usage: istio-sds FOLDER      (FOLDER: where its socket is made)
//
// It prints `ready socket=PATH pid=PID rotation=SIGUSR1`, makes one rotation for each SIGUSR1 and
// prints the time (ns since 1970) at which the new certificate was there, and ends at SIGTERM.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/nodeagent/sds"
)

// secrets is the agent's cache, reduced to one certificate and its root.
type secrets struct {
	mutex   sync.Mutex
	key     *ecdsa.PrivateKey
	root    *x509.Certificate
	rootPEM []byte
	current security.SecretItem
}

func (s *secrets) GenerateSecret(name string) (*security.SecretItem, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if name == security.RootCertReqResourceName {
		return &security.SecretItem{ResourceName: name, RootCert: s.rootPEM}, nil
	}
	found := s.current
	found.ResourceName = name
	return &found, nil
}

func (s *secrets) renew() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leaf := certificate()
	leaf.URIs = []*url.URL{{Scheme: "spiffe", Host: "bench.example", Path: "/web"}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, s.root, key.Public(), s.key)
	if err != nil {
		return err
	}
	encoded, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.current = security.SecretItem{
		CertificateChain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		PrivateKey:       pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: encoded}),
		CreatedTime:      leaf.NotBefore,
		ExpireTime:       leaf.NotAfter,
	}
	return nil
}

func certificate() *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	check(err)
	return &x509.Certificate{
		SerialNumber: serial,
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(time.Hour),
		Subject:      pkix.Name{CommonName: "bench"},
	}
}

func made() *secrets {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	root := certificate()
	root.IsCA, root.BasicConstraintsValid = true, true
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	check(err)
	root, err = x509.ParseCertificate(der)
	check(err)
	found := &secrets{key: key, root: root}
	found.rootPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	check(found.renew())
	return found
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "istio-sds:", err)
		os.Exit(1)
	}
}

func main() {
	check(os.Chdir(os.Args[1])) // its socket's path is relative
	options := log.DefaultOptions()
	options.SetDefaultOutputLevel(log.OverrideScopeName, log.ErrorLevel)
	check(log.Configure(options))
	path, err := filepath.Abs(security.GetIstioSDSServerSocketPath())
	check(err)
	check(os.MkdirAll(filepath.Dir(path), 0o755))
	store := made()
	server := sds.NewServer(&security.Options{}, store, nil)
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1)
	fmt.Printf("ready socket=%s pid=%d rotation=SIGUSR1\n", path, os.Getpid())
	for each := range signals {
		if each != syscall.SIGUSR1 {
			break
		}
		check(store.renew())
		at := time.Now().UnixNano()
		server.OnSecretUpdate(security.WorkloadKeyCertResourceName)
		fmt.Println(at)
	}
	server.Stop()
}
