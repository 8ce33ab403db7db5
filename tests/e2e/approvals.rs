//! Approvals that are wrong, end by themselves, or refuse: through `gatewaytrust run`, and the timer through both.

use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::harness::device::{ConnectOptions, DeviceIdentity};
use crate::harness::gateway::Gateway;
use crate::harness::{skipped, wait};
use crate::world::gateways::Managed;
use crate::world::{A_WHILE, Of, World, approval, enter, refusal, refused_for_pairing};

const ONLY_LOOPBACK: &str = "this machine has no IPv4 address besides loopback";

#[tokio::test]
async fn an_id_that_is_not_its_keys_hash_is_an_invalid_spec() {
    let (managed, world) = Managed::in_cluster().await;
    let Some(url) = managed.remote_url() else {
        return skipped("an id that is not its key's hash", ONLY_LOOPBACK);
    };
    let (device, other) = (DeviceIdentity::generate(), DeviceIdentity::generate());
    let mut spec = approval(&device, &["operator.read"]);
    spec["device"]["publicKey"] = json!(other.public_key());
    world.approve("mixed-up", spec).await;
    let message = world
        .condition(Of::Approval("mixed-up"), "Ready", "False", "InvalidSpec")
        .await;
    assert!(
        message.contains("spec.device.id") && message.contains(&other.id()),
        "{message}"
    );
    assert!(message.contains("openclaw devices list"), "no next command: {message}");
    for identity in [&device, &other] {
        let options = ConnectOptions::new(&url, managed.gateway.token());
        refused_for_pairing(identity, &options).await;
    }
    wait::throughout("both devices staying out", A_WHILE, async || {
        let gateway = &managed.gateway;
        gateway.paired(&device.id()).await.is_none() && gateway.paired(&other.id()).await.is_none()
    })
    .await;
    // Nothing was approved by it, so nothing holds its deletion up.
    world.withdraw("mixed-up").await;
}

#[tokio::test]
async fn an_expiry_in_the_past_is_ready_and_approves_nobody() {
    let (managed, world) = Managed::in_cluster().await;
    let Some(url) = managed.remote_url() else {
        return skipped("an expiry in the past", ONLY_LOOPBACK);
    };
    let device = DeviceIdentity::generate();
    let mut spec = approval(&device, &["operator.read"]);
    spec["expiresAt"] = json!("2020-01-01T00:00:00Z");
    world.approve("expired", spec).await;
    let message = world
        .condition(Of::Approval("expired"), "Ready", "True", "Expired")
        .await;
    assert!(
        message.contains("2020-01-01") && message.contains("spec.expiresAt"),
        "{message}"
    );
    let options = ConnectOptions::new(&url, managed.gateway.token());
    refused_for_pairing(&device, &options).await;
    world
        .condition(Of::Approval("expired"), "Approved", "False", "Expired")
        .await;
    wait::throughout("the device staying out", A_WHILE, async || {
        managed.gateway.paired(&device.id()).await.is_none()
    })
    .await;
    world.withdraw("expired").await;
}

/// The approval ends while its device is connected, and nothing else happens at that moment.
async fn ends_by_the_clock(world: &World, gateway: &Gateway, url: &str) {
    let device = DeviceIdentity::generate();
    let lifetime = Duration::from_secs(6);
    let end = SystemTime::now() + lifetime;
    let end = jiff::Timestamp::try_from(end).expect("a time").to_string();
    let mut spec = approval(&device, &["operator.read"]);
    spec["expiresAt"] = json!(end);
    world.approve("visitor", spec).await;
    let options = ConnectOptions::new(url, gateway.token());
    let conn = enter(&device, &options).await;
    assert_eq!(conn.closed().await, (4001, "device removed".to_owned()));
    let late = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("now");
    let due: jiff::Timestamp = end.parse().expect("a time");
    let late = late.as_millis() as i64 - due.as_millisecond();
    assert!((0..3000).contains(&late), "closed {late} ms after the end");
    world
        .condition(Of::Approval("visitor"), "Ready", "True", "Expired")
        .await;
    refused_for_pairing(&device, &options).await;
    world.withdraw("visitor").await;
    world.shows_no_secret(&[gateway.token()]).await;
}

#[tokio::test]
async fn kubernetes_an_expiry_revokes_by_the_clock() {
    let (managed, world) = Managed::in_cluster().await;
    match managed.remote_url() {
        Some(url) => ends_by_the_clock(&world, &managed.gateway, &url).await,
        None => skipped("kubernetes: an expiry", ONLY_LOOPBACK),
    }
}

#[tokio::test]
async fn sync_an_expiry_revokes_by_the_clock() {
    let (managed, world) = Managed::in_folder().await;
    match managed.remote_url() {
        Some(url) => ends_by_the_clock(world, &managed.gateway, &url).await,
        None => skipped("sync: an expiry", ONLY_LOOPBACK),
    }
}

#[tokio::test]
async fn an_unknown_role_is_refused_by_the_api_server() {
    let world = World::cluster().await;
    let mut spec = approval(&DeviceIdentity::generate(), &[]);
    spec["gatewayTrustRef"] = json!({"name": "gateway"});
    spec["roles"] = json!(["superuser"]);
    let said = refusal(
        world
            .in_cluster()
            .try_apply("DeviceApproval", "unknown-role", spec)
            .await,
    );
    assert!(
        said.contains("spec.roles[0]") && said.contains("\"superuser\"") && said.contains("\"operator\""),
        "{said}"
    );
}

#[tokio::test]
async fn a_rejected_device_is_put_out_and_kept_out() {
    let (managed, world) = Managed::in_cluster().await;
    let Some(url) = managed.remote_url() else {
        return skipped("a rejected device", ONLY_LOOPBACK);
    };
    let device = DeviceIdentity::generate();
    world.approve("lost-phone", approval(&device, &["operator.read"])).await;
    let options = ConnectOptions::new(&url, managed.gateway.token());
    let conn = enter(&device, &options).await;
    let spec = json!({"device": {"id": device.id()}, "decision": "Reject"});
    world.approve("lost-phone", spec).await;
    assert_eq!(conn.closed().await, (4001, "device removed".to_owned()));
    refused_for_pairing(&device, &options).await;
    wait::until("its new request to be rejected", crate::world::PATIENCE, async || {
        managed.gateway.pending(&device.id()).await.is_none()
    })
    .await;
    world
        .condition(Of::Approval("lost-phone"), "Ready", "True", "InForce")
        .await;
    world.withdraw("lost-phone").await;
}
