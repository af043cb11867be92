"""One subscription: the whole xDS protocol of one stream, without I/O, clock or asyncio.

Theory of operation
===================

A stream is a conversation about *names*. The client says which names it wants; the server says
what each name means, with a version, each time that changes. This module holds the state
of one such conversation and decides; it never waits and never encodes.

Two calls drive it:

* ``receive(request)`` takes one parsed request and changes *what is wanted* and *what is known to
  have arrived*. It returns an :class:`Outcome`: what was ACKed or NACKed, which names came and
  went. It never answers.
* ``respond(view, nonce)`` looks at the names that are *due* (asked for, or touched by a change of
  content since the last look), compares the version in the view **now** with the
  version that was sent last, and returns an :class:`Answer`. ``touch(names)`` makes names due.

Because ``respond`` reads the newest content when it is called and not when the change happened, a
slow reader never has a queue: while one response is on its way any number of changes collapse into
one set of due names (the latest wins). And because a name is sent only where its version differs
from the version sent last, nothing unchanged is ever sent twice, an ACK and a NACK are both
answered by silence, and content that was refused alone is never repeated: only new content has a
new version. There are three exceptions. What is known of a name that is subscribed (again) is
erased, so it is always sent. A response of several resources that is refused is sent again in
halves, because a client may have stopped at the one that is bad. And a state-of-the-world request
that neither answers nor changes anything asks for everything again.

A worked example, state of the world, with what each call returns:

======================================================  ===========================================
call                                                    result
======================================================  ===========================================
``receive(names=[default])``                            added ``default``, which is due
``respond(view, "n1")`` (``default`` is at ``v1``)      one resource, ``v1``, under nonce ``n1``
``receive(names=[default], nonce="n1")``                ACKed ``v1``; nothing is due: silence
``touch([default])``, twice: the view has ``v2``, then   ``default`` is due, once
``v3``
``respond(view, "n2")``                                 ``v3`` alone; ``v2`` was never sent
``receive(names=[default], nonce="n2", error="bad")``   NACKed ``v3``; silence, nothing is repeated
``receive(names=[default, ROOTCA], nonce="n2")``        added ``ROOTCA``, which alone is due
``respond(view, "n3")`` (``ROOTCA`` is not there)       absent ``ROOTCA``: no message is sent
``receive(names=[default], nonce="n2")``                crossed nothing: ``n2`` is still the latest
                                                        nonce; dropped ``ROOTCA``
======================================================  ===========================================

State per name is a :class:`~sds.serving.subscription.state.Watch`: the version sent last, the one
ACKed last, the last refusal. State per response that is not answered yet is its nonce and the
receipts of what was in it, never its bytes; at most :data:`MAX_OUTSTANDING` of them, so that a
client that never ACKs costs nothing.

State of the world and delta differ in three points only, each in the class of its name:

========================  ===============================  =========================================
                          state of the world               delta
========================  ===============================  =========================================
names                     the whole list each time         subscribe and unsubscribe lists
a stale nonce             voids the whole request          voids the ACK only, never the lists
nothing under a name      silence                          told once, in ``removed_resources``,
                                                           unless it is expected to come
========================  ===============================  =========================================

Rules and where they come from (xDS protocol: Envoy's document "xDS REST and gRPC protocol"):

* The empty list of a first request, and ``*``, are the wildcard ("How the client specifies what
  resources to return"). An empty list after names is an unsubscription. On the aggregated stream
  only ``*`` is the wildcard: there an Envoy begins with an empty list that means nothing.
* A request with ``error_detail`` is a NACK, whatever its version ("ACK and NACK").
* The first request of a stream starts afresh: its nonce and error belong to a former stream
  ("When to send an update": nonces are valid within one stream only). In delta its
  ``initial_resource_versions`` say what the client has kept.
* State of the world may send the changed resources only: for every type but listeners and clusters
  a resource that is missing from a response is unchanged ("Grouping resources into responses").
* A client that drops a name while it has the wildcard is told what that name means from now
  on ("Unsubscribing from resources"): the resource again, or its removal.
"""

from __future__ import annotations

from sds.serving.subscription.delta import DeltaSubscription
from sds.serving.subscription.messages import (
    Answer,
    DeltaRequest,
    Named,
    Outcome,
    Receipt,
    SotwRequest,
    View,
    Watched,
)
from sds.serving.subscription.sotw import SotwSubscription
from sds.serving.subscription.state import MAX_OUTSTANDING, WILDCARD, Subscription

__all__ = [
    "MAX_OUTSTANDING",
    "WILDCARD",
    "Answer",
    "DeltaRequest",
    "DeltaSubscription",
    "Named",
    "Outcome",
    "Receipt",
    "SotwRequest",
    "SotwSubscription",
    "Subscription",
    "View",
    "Watched",
]
