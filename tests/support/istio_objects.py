"""Istio's authorization as objects in etcd, and a client that shows what an Envoy lets through.

The objects are what `sds policy import istio` reads. No part of Istio runs: the test asks whether
anything of ours depends on them once a signed policy says the same.
"""

from __future__ import annotations

from typing import Any, Final

GROUP: Final = "security.istio.io"
KINDS: Final = {
    "authorizationpolicies": "AuthorizationPolicy",
    "peerauthentications": "PeerAuthentication",
}


def definitions() -> dict[str, Any]:
    """Both kinds, for an API server that has no Istio."""
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{plural}.{GROUP}"},
                "spec": {
                    "group": GROUP,
                    "scope": "Namespaced",
                    "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
                    "versions": [
                        {
                            "name": "v1",
                            "served": True,
                            "storage": True,
                            "schema": {
                                "openAPIV3Schema": {
                                    "type": "object",
                                    "x-kubernetes-preserve-unknown-fields": True,
                                }
                            },
                        }
                    ],
                },
            }
            for plural, kind in KINDS.items()
        ],
    }


def objects(namespace: str, *, app: str, principal: str) -> dict[str, Any]:
    """``principal`` may GET what is below ``/orders`` of pods with the label ``app``; mTLS only."""
    to = [{"operation": {"methods": ["GET"], "paths": ["/orders/*"]}}]
    given = {
        "AuthorizationPolicy": {
            "selector": {"matchLabels": {"app": app}},
            "action": "ALLOW",
            "rules": [{"from": [{"source": {"principals": [principal]}}], "to": to}],
        },
        "PeerAuthentication": {"mtls": {"mode": "STRICT"}},
    }
    items = [
        {
            "apiVersion": f"{GROUP}/v1",
            "kind": kind,
            "metadata": {"name": "guard", "namespace": namespace},
            "spec": spec,
        }
        for kind, spec in given.items()
    ]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def keys(namespace: str) -> list[str]:
    """Where etcd has both objects."""
    return [f"/registry/{GROUP}/{plural}/{namespace}/guard" for plural in KINDS]


ASK: Final = """
import http.client, json, ssl, subprocess, sys, tempfile

socket, host = sys.argv[1:]
words = ['sds', 'get', 'default', 'ROOTCA', '--socket', socket, '--show-private-key']
mine, roots = json.loads(subprocess.check_output([*words, '--output', 'json']))['secrets']

def ask(method, path, *, shown):
    context = ssl.create_default_context(cadata=''.join(roots['certificates']))
    context.check_hostname = False
    if shown:
        with tempfile.NamedTemporaryFile('w', dir='/dev/shm') as file:
            file.write(mine['private_key'] + '\\n' + ''.join(mine['certificates']))
            file.flush()
            context.load_cert_chain(file.name)
    connection = http.client.HTTPSConnection(host, 8443, timeout=20, context=context)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    except (ssl.SSLError, ConnectionError):
        return 'refused'  # an alert, or the end of the connection before it is read
    finally:
        connection.close()

def plain(path):
    connection = http.client.HTTPConnection(host, 8443, timeout=20)
    try:
        connection.request('GET', path)
        return connection.getresponse().status
    except (ConnectionError, http.client.HTTPException):
        return 'refused'
    finally:
        connection.close()

print(json.dumps({
    'allowed': ask('GET', '/orders/1', shown=True),
    'another path': ask('GET', '/admin', shown=True),
    'another method': ask('DELETE', '/orders/1', shown=True),
    'no certificate': ask('GET', '/orders/1', shown=False),
    'no TLS': plain('/orders/1'),
}))
"""
"""Run in a pod with ``SOCKET HOST``: what an Envoy at HOST answers to each way of asking."""
