"""The rules that every bootstrap of ours keeps, checked on its parsed form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

BACK_OFF = {"base_interval": {"0.1s", "0.100s"}, "max_interval": {"1s"}}


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping inside ``value``, itself included."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def check(bootstrap: dict[str, Any]) -> None:
    """Every rule; fails where one is broken or where nothing shows that it was kept."""
    everything = list(nodes(bootstrap))
    sources = [node["sds_config"] for node in everything if "sds_config" in node]
    assert len(sources) >= 2, "certificate and bundle come over SDS"
    for source in sources:
        assert source["resource_api_version"] == "V3"
        assert ("ads" in source) != ("api_config_source" in source)
    streams = [node["api_config_source"] for node in everything if "api_config_source" in node]
    streams += [node["ads_config"] for node in everything if "ads_config" in node]
    assert streams
    for stream in streams:
        assert stream["transport_api_version"] == "V3"
        assert stream["set_node_on_first_message_only"] is True
        (service,) = stream["grpc_services"]
        back_off = service["envoy_grpc"]["retry_policy"]["retry_back_off"]
        assert back_off.keys() == BACK_OFF.keys()
        assert all(back_off[key] in allowed for key, allowed in BACK_OFF.items())
    assert not any("combined_validation_context" in node for node in everything)
    assert not any("inline_bytes" in node or "private_key" in node for node in everything)
    for node in everything:
        kind = node.get("@type", "")
        if kind.endswith(".DownstreamTlsContext"):
            assert node["require_client_certificate"] is True
            assert node["disable_stateless_session_resumption"] is True
            assert node["disable_stateful_session_resumption"] is True
    clusters = {entry["name"]: entry for entry in bootstrap["static_resources"]["clusters"]}
    agent = clusters["sds"]
    (option,) = agent["typed_extension_protocol_options"].values()
    assert "http2_protocol_options" in option["explicit_http_config"]
    assert any("pipe" in node for node in nodes(agent["load_assignment"]))
