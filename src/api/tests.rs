//! What a person gets to read for a spec that has no meaning, and what an origin is.

use serde_json::{Value, json};

use super::validated::{Origin, SpecError, Target, ValidatedApproval, ValidatedTrust};

fn trust(spec: Value) -> Result<ValidatedTrust, SpecError> {
    ValidatedTrust::parse(&serde_json::from_value(spec).expect("the shape of a GatewayTrust's spec"))
}

fn approval(spec: Value) -> Result<ValidatedApproval, SpecError> {
    ValidatedApproval::parse(&serde_json::from_value(spec).expect("the shape of a DeviceApproval's spec"))
}

const ID: &str = "168277d3805c6d003fed1c8cf18a9af2196108f89df4e1bb16d80661d3d3bbcb";
const KEY: &str = "XnWXxaUCrPgmHCk1k_eo4PWwLlqJVjrrkjm9ErQXCq8";

#[test]
fn a_spec_without_meaning_is_refused_with_its_field() {
    let device =
        |device: Value| approval(json!({"gatewayTrustRef": {"name": "g"}, "device": device, "roles": ["operator"]}));
    let rest = |mut fields: Value| {
        fields["gatewayTrustRef"] = json!({"name": "g"});
        fields["device"] = json!({"id": ID});
        approval(fields)
    };
    let messages: Vec<String> = [
        trust(json!({"gateway": {}})).expect_err("no target"),
        trust(json!({"gateway": {"service": {"name": "s", "port": 70000}}})).expect_err("port"),
        trust(json!({"gateway": {"service": {"name": "s"}, "auth": {}}})).expect_err("auth"),
        trust(json!({"gateway": {"url": "ftp://gateway.example/"}})).expect_err("scheme"),
        trust(
            json!({"gateway": {"service": {"name": "s"}}, "proxies": {"named": [{"name": "all", "podSelector": {}}]}}),
        )
        .expect_err("selector"),
        device(json!({})).expect_err("no device"),
        device(json!({"id": "abc"})).expect_err("id"),
        device(json!({"publicKey": "abc"})).expect_err("key"),
        device(json!({"id": "0".repeat(64), "publicKey": KEY})).expect_err("id and key"),
        rest(json!({})).expect_err("roles"),
        rest(json!({"roles": ["node"], "scopes": ["operator.read"]})).expect_err("scopes"),
        rest(json!({"roles": ["operator"], "scopes": ["read"]})).expect_err("scope"),
    ]
    .iter()
    .map(ToString::to_string)
    .collect();
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn the_preset_stands_for_what_the_dashboard_asks() {
    let spec = approval(
        json!({"gatewayTrustRef": {"name": "g"}, "device": {"publicKey": KEY}, "roles": ["operator"], "scopes": ["ControlUi", "operator.talk.secrets"]}),
    );
    let spec = spec.expect("valid");
    assert_eq!(spec.device.as_str(), ID, "the id follows from the key");
    assert_eq!(spec.grant.scopes.len(), 7);
    assert!(spec.grant.scopes.contains("operator.admin") && !spec.grant.scopes.contains("ControlUi"));
}

#[test]
fn an_approval_that_became_invalid_can_still_be_revoked() {
    let spec = serde_json::from_value(
        json!({"gatewayTrustRef": {"name": "g"}, "device": {"id": ID}, "roles": ["operator"], "scopes": ["nonsense"]}),
    )
    .expect("shape");
    assert!(ValidatedApproval::parse(&spec).is_err());
    assert_eq!(
        ValidatedApproval::parse_for_removal(&spec)
            .expect("the device is known")
            .device
            .as_str(),
        ID
    );
}

#[test]
fn an_origin_is_compared_as_such_and_never_holds_a_secret() {
    let origin = |text: &str| Origin::parse(text);
    let claw = origin("https://Claw.example/base").expect("url");
    assert_eq!(
        (claw.consent().as_str(), claw.websocket().as_str()),
        ("https://claw.example", "wss://claw.example:443/base/")
    );
    for consent in [
        "https://claw.example",
        "https://claw.example/",
        "wss://claw.example:443",
        " https://CLAW.example ",
    ] {
        assert!(claw.is_consented_by(consent), "{consent}");
    }
    for other in [
        "",
        "*",
        "claw.example",
        "http://claw.example",
        "https://claw.example:8443",
        "https://claw.example.evil",
        "https://evil/https://claw.example",
    ] {
        assert!(!claw.is_consented_by(other), "{other}");
    }
    for bad in [
        "https://user:s3cret@claw.example/",
        "https://claw.example/?token=s3cret",
        "https://claw.example/#token=s3cret",
        "https://",
        "s3cret",
        "https://claw.example:0/",
        "https://[::1",
    ] {
        let message = origin(bad).expect_err(bad);
        assert!(!message.contains("s3cret"), "{message}");
    }
    assert!(origin("http://[::1]:18789/").expect("url").is_loopback());
    assert!(origin("http://127.9.9.9/").expect("url").is_loopback());
    assert!(!origin("http://127.0.0.1.example/").expect("url").is_loopback());
}

#[test]
fn a_service_speaks_tls_only_where_told() {
    let plain = trust(json!({"gateway": {"service": {"name": "s", "port": "gateway"}}})).expect("valid");
    assert!(matches!(plain.target, Target::Service { tls: false, .. }));
    let tls = trust(json!({"gateway": {"service": {"name": "s"}, "tls": {}}})).expect("valid");
    assert!(matches!(tls.target, Target::Service { tls: true, .. }));
}
