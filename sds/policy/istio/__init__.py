"""From Istio's AuthorizationPolicy and PeerAuthentication to a policy document.

Reading manifests (:mod:`.manifests`), what one field says in our language (:mod:`.rules`), what is
left under a denial (:mod:`.atoms`), and the whole mesh (:mod:`.conversion`). Invariant: the result
never allows more than Istio did; what it cannot say is named with its file and line.
"""
