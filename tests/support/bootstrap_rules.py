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
    check_managers(bootstrap)
    clusters = {entry["name"]: entry for entry in bootstrap["static_resources"]["clusters"]}
    agent = clusters["sds"]
    (option,) = agent["typed_extension_protocol_options"].values()
    assert "http2_protocol_options" in option["explicit_http_config"]
    assert any("pipe" in node for node in nodes(agent["load_assignment"]))


def check_managers(bootstrap: dict[str, Any]) -> None:
    """Paths have one normal form, and what was allowed once does not go on for ever."""
    for node in nodes(bootstrap):
        kind = node.get("@type", "")
        if kind.endswith(".HttpConnectionManager"):
            assert node["normalize_path"] is True
            assert node["merge_slashes"] is True
            assert node["path_with_escaped_slashes_action"] == "REJECT_REQUEST"
            assert node["common_http_protocol_options"]["max_stream_duration"] == "3600s"
            names = [entry["name"] for entry in node["http_filters"]]
            assert names[-1] == "envoy.filters.http.router"
        if kind.endswith(".TcpProxy"):
            assert node["max_downstream_connection_duration"] == "3600s"


def check_authorization(bootstrap: dict[str, Any]) -> None:
    """Every mTLS listener asks the discovered filter first, and denies all until it comes."""
    for listener in bootstrap["static_resources"]["listeners"]:
        (chain,) = listener["filter_chains"]
        mtls = "transport_socket" in chain
        filters = chain["filters"]
        name, kind = "authorization-tcp", "network"
        if "http_filters" in filters[-1].get("typed_config", {}):
            filters, name, kind = (
                filters[-1]["typed_config"]["http_filters"],
                "authorization",
                "http",
            )
        if not mtls:
            assert not any("config_discovery" in entry for entry in filters)
            continue
        first = filters[0]
        assert first["name"] == name
        discovery = first["config_discovery"]
        type_url = f"type.googleapis.com/envoy.extensions.filters.{kind}.rbac.v3.RBAC"
        assert discovery["type_urls"] == [type_url]
        # An RBAC without rules allows everything: present and empty denies.
        assert discovery["default_config"]["@type"] == type_url
        assert discovery["default_config"]["rules"] == {}
        assert not discovery.get("apply_default_config_without_warming")
