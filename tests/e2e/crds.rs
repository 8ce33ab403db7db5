//! The resource definitions in a real API server: what is refused and how it says so, defaults, columns, names.

use serde_json::{Value, json};

use crate::harness::control_plane::ADMIN;
use crate::harness::device::DeviceIdentity;
use crate::harness::gatewaytrust;
use crate::world::{World, condition_of, refusal, repository_file};

/// A spec with one change: the value at a JSON pointer, null to take it away.
fn with(mut spec: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    let parent = spec.pointer_mut(parent).expect("a parent");
    match value {
        Value::Null => drop(parent.as_object_mut().expect("an object").remove(field)),
        value => parent[field] = value,
    }
    spec
}

fn trust() -> Value {
    json!({"gateway": {"service": {"name": "openclaw"}}, "proxies": {}})
}

fn device_approval() -> Value {
    json!({
        "gatewayTrustRef": {"name": "gateway"},
        "device": {"id": DeviceIdentity::generate().id()},
        "roles": ["operator"],
        "scopes": ["operator.read"],
    })
}

fn range(cidr: &str) -> Value {
    with(trust(), "/proxies/ranges", json!([{"cidr": cidr, "reason": "a test"}]))
}

/// Each bad object, and what the refusal has to name.
fn bad_objects() -> Vec<(&'static str, Value, [&'static str; 2])> {
    let url = json!("https://gateway.example/");
    let named = |selector: Value| {
        let named = json!([{"name": "tunnel", "podSelector": selector}]);
        with(trust(), "/proxies/named", named)
    };
    let secret = json!({"name": "s", "key": "k"});
    vec![
        (
            "GatewayTrust",
            with(trust(), "/gateway/url", url),
            ["spec.gateway", "exactly one of service and url"],
        ),
        (
            "GatewayTrust",
            with(trust(), "/gateway/service", Value::Null),
            ["spec.gateway", "exactly one of service and url"],
        ),
        (
            "GatewayTrust",
            json!({"gateway": {"url": "ftp://gateway.example/"}}),
            ["spec.gateway.url", "should match"],
        ),
        (
            "GatewayTrust",
            with(
                trust(),
                "/gateway/auth",
                json!({"tokenSecretRef": secret, "passwordSecretRef": secret}),
            ),
            [
                "spec.gateway.auth",
                "exactly one of tokenSecretRef and passwordSecretRef",
            ],
        ),
        (
            "GatewayTrust",
            with(trust(), "/gateway/enrolment", json!("Magic")),
            ["spec.gateway.enrolment", "supported values"],
        ),
        (
            "GatewayTrust",
            with(trust(), "/mode", json!("Destroy")),
            ["spec.mode", "supported values"],
        ),
        (
            "GatewayTrust",
            named(json!({})),
            ["spec.proxies.named[0].podSelector", "must not be empty"],
        ),
        (
            "GatewayTrust",
            named(json!({"matchLabels": {}})),
            ["spec.proxies.named[0].podSelector", "must not be empty"],
        ),
        (
            "GatewayTrust",
            range("10.0.1.7/24"),
            ["spec.proxies.ranges[0]", "cidr has host bits set"],
        ),
        (
            "GatewayTrust",
            range("nginx"),
            ["spec.proxies.ranges[0]", "cidr must be an IP address or a CIDR"],
        ),
        (
            "GatewayTrust",
            range("0.0.0.0/0"),
            ["spec.proxies.ranges[0]", "the whole world"],
        ),
        (
            "GatewayTrust",
            range("::/0"),
            ["spec.proxies.ranges[0]", "the whole world"],
        ),
        (
            "GatewayTrust",
            with(trust(), "/proxies/ranges", json!([{"cidr": "10.0.0.0/24"}])),
            ["spec.proxies.ranges[0].reason", "Required"],
        ),
        (
            "GatewayTrust",
            with(trust(), "/proxies/limits", json!({"maxPrefixes": 0})),
            ["spec.proxies.limits.maxPrefixes", "greater than or equal to 1"],
        ),
        (
            "DeviceApproval",
            with(device_approval(), "/roles", Value::Null),
            ["spec", "roles must name at least one role"],
        ),
        (
            "DeviceApproval",
            with(device_approval(), "/roles", json!(["node"])),
            ["spec", "scopes belong to the role operator"],
        ),
        (
            "DeviceApproval",
            with(device_approval(), "/roles", json!(["root"])),
            ["spec.roles[0]", "supported values"],
        ),
        (
            "DeviceApproval",
            with(device_approval(), "/scopes", json!(["everything"])),
            ["spec.scopes[0]", "should match"],
        ),
        (
            "DeviceApproval",
            with(device_approval(), "/device", json!({})),
            ["spec.device", "needs an id or a publicKey"],
        ),
        (
            "DeviceApproval",
            with(device_approval(), "/device/id", json!("12345")),
            ["spec.device.id", "64"],
        ),
        (
            "DeviceApproval",
            with(device_approval(), "/decision", json!("Maybe")),
            ["spec.decision", "supported values"],
        ),
        (
            "DeviceApproval",
            with(device_approval(), "/expiresAt", json!("tomorrow")),
            ["spec.expiresAt", "date-time"],
        ),
        (
            "DeviceApproval",
            with(device_approval(), "/gatewayTrustRef", Value::Null),
            ["spec.gatewayTrustRef", "Required"],
        ),
    ]
}

#[tokio::test]
async fn bad_objects_are_refused_by_the_name_of_their_field() {
    let world = World::cluster().await;
    for (kind, spec, expected) in bad_objects() {
        let said = refusal(world.in_cluster().try_apply(kind, "bad", spec.clone()).await);
        for part in expected {
            assert!(said.contains(part), "{part:?} is not in: {said}\nof {spec}");
        }
    }
}

#[tokio::test]
async fn what_says_which_gateway_or_device_never_changes() {
    let world = World::cluster().await;
    let cluster = world.in_cluster();
    cluster.apply("GatewayTrust", "fixed", trust()).await;
    cluster.apply("DeviceApproval", "fixed", device_approval()).await;
    let changes = [
        (
            "GatewayTrust",
            with(trust(), "/gateway/service", json!({"name": "other"})),
            "spec.gateway.service and spec.gateway.url are immutable",
        ),
        (
            "GatewayTrust",
            json!({"gateway": {"url": "https://gateway.example/"}}),
            "spec.gateway.service and spec.gateway.url are immutable",
        ),
        ("DeviceApproval", device_approval(), "device is immutable"),
        (
            "DeviceApproval",
            with(device_approval(), "/gatewayTrustRef", json!({"name": "other"})),
            "gatewayTrustRef is immutable",
        ),
    ];
    for (kind, spec, expected) in changes {
        let said = refusal(cluster.try_apply(kind, "fixed", spec).await);
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn a_new_object_says_at_once_that_nobody_has_looked_at_it() {
    let world = World::cluster().await;
    let cluster = world.in_cluster();
    for (kind, spec) in [("GatewayTrust", trust()), ("DeviceApproval", device_approval())] {
        let manifest = cluster.manifest(kind, "new", spec);
        // What `create` answers was stored before the operator could see it.
        let args = ["create", "-f", "-", "-o", "json"];
        let created = cluster.plane.kubectl(ADMIN, &args, Some(&manifest)).await.ok();
        let created: Value = serde_json::from_str(&created).expect("JSON");
        let ready = condition_of(&created["status"], "Ready");
        assert_eq!(
            (&ready["status"], &ready["reason"]),
            (&json!("Unknown"), &json!("Pending"))
        );
        assert!(
            ready["message"]
                .as_str()
                .unwrap_or_default()
                .contains("kubectl get pods"),
            "{ready}"
        );
    }
}

#[tokio::test]
async fn short_names_show_what_matters_in_columns() {
    let world = World::cluster().await;
    let cluster = world.in_cluster();
    cluster.apply("GatewayTrust", "gateway", trust()).await;
    cluster.apply("DeviceApproval", "laptop", device_approval()).await;
    let columns = async |args: &[&str]| {
        let table = cluster.kubectl(args).await.ok();
        let header = table.lines().next().unwrap_or_default();
        header.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        columns(&["get", "gt"]).await,
        "NAME READY REASON PROXIES PAIRED PENDING AGE"
    );
    assert_eq!(
        columns(&["get", "gt", "-o", "wide"]).await,
        "NAME READY REASON PROXIES PAIRED PENDING VERSION MESSAGE AGE"
    );
    assert_eq!(
        columns(&["get", "da"]).await,
        "NAME GATEWAY DECISION READY APPROVED CONNECTED REASON LABEL AGE"
    );
    let explained = cluster
        .kubectl(&["explain", "gt.spec.proxies.ranges.reason"])
        .await
        .ok();
    assert!(explained.contains("kept as evidence"), "{explained}");
}

#[tokio::test]
async fn the_committed_definitions_are_the_codes() {
    let printed = gatewaytrust(&["crds"], &[], None).await.ok();
    assert_eq!(printed, repository_file("crds/gatewaytrust.io.yaml"), "run `make crds`");
}
