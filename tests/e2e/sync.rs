//! Through `gatewaytrust sync`: the same scenarios from a folder of files, and what only a folder has.

use std::path::Path;

use crate::harness::gateway::Gateway;
use crate::harness::netns::Network;
use crate::harness::nginx::Nginx;
use crate::harness::process::{Finished, free_port, scratch};
use crate::harness::{gatewaytrust, skipped};
use crate::scenarios;
use crate::world::gateways::{Managed, own_gateway, remote_url};
use crate::world::{Of, World, url_spec};

const ONLY_LOOPBACK: &str = "this machine has no IPv4 address besides loopback";

#[tokio::test]
async fn sync_an_approval_lets_a_device_in_and_its_deletion_puts_it_out() {
    let (managed, world) = Managed::in_folder().await;
    match &managed.network {
        Ok(network) => scenarios::let_in_and_put_out(world, &managed.gateway, network, &network.host()).await,
        Err(why) => skipped("sync: an approval lets a device in", why),
    }
}

#[tokio::test]
async fn sync_a_device_that_asks_for_more_is_held_and_never_paired() {
    let (managed, world) = Managed::in_folder().await;
    match managed.remote_url() {
        Some(url) => scenarios::held_for_asking_more(world, &managed.gateway, &url).await,
        None => skipped("sync: a device that asks for more", ONLY_LOOPBACK),
    }
}

#[tokio::test]
async fn sync_a_declared_proxy_is_trusted_and_another_spelling_closes_nobody() {
    let name = "sync: a declared proxy";
    let network = match Network::new().await {
        Ok(network) => network,
        Err(why) => return skipped(name, why),
    };
    let (gateway, _slot) = own_gateway(Gateway::builder().token("token-of-the-proxied-gateway")).await;
    let proxy = network.host();
    let upstream = format!("{}:{}", network.gateway_ip(), gateway.port());
    let Some(nginx) = Nginx::start(&proxy, &upstream).await else {
        return skipped(name, "nginx is not installed");
    };
    let world = World::folder();
    scenarios::declared_proxy(&world, &gateway, &network, &nginx.url(), &proxy).await;
}

#[tokio::test]
async fn sync_the_operator_stopped_or_killed_and_the_gateway_wiped_lose_nothing() {
    let (mut gateway, _slot) = own_gateway(Gateway::builder().token("token-of-a-gateway-that-is-wiped")).await;
    let Some(url) = remote_url(&gateway) else {
        return skipped("sync: outages", ONLY_LOOPBACK);
    };
    let world = World::folder();
    scenarios::outages(&world, &mut gateway, &url).await;

    // All that is left is as declared, and `--once` on the same folder says so; without the gateway it says why not.
    let folder = world.in_folder();
    let mut runner = world.runner().await;
    let (status, took) = runner.operator().terminate().await;
    assert!(status.success() && took.as_secs() < 2, "{status} after {took:?}");
    let secrets = folder.secrets().display().to_string();
    let done = once(&folder.git(), &folder.state(), &["--secrets-dir", &secrets]).await;
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(
        done.stdout.contains("AsDeclared") && done.stdout.contains("Granted"),
        "{done:?}"
    );
    let paired = gateway
        .admin()
        .await
        .call("device.pair.list", serde_json::json!({}))
        .await;
    gateway.stop().await;
    let not_done = once(
        &folder.git(),
        &folder.state(),
        &["--secrets-dir", &secrets, "--timeout", "2"],
    )
    .await;
    assert_eq!(not_done.status.code(), Some(1), "{not_done:?}");
    assert!(not_done.stdout.contains("ConnectFailed"), "{not_done:?}");
    // The operator and the second device.
    let paired = paired.expect("device.pair.list");
    assert_eq!(paired["paired"].as_array().map(Vec::len), Some(2), "{paired}");
    for said in [&done, &not_done] {
        let token = gateway.token();
        assert!(!said.stdout.contains(token) && !said.stderr.contains(token));
    }
}

async fn once(folder: &Path, state: &Path, more: &[&str]) -> Finished {
    let (folder, state) = (folder.display().to_string(), state.display().to_string());
    let mut args = vec!["sync", "--once", "-f", &folder, "--state-dir", &state];
    args.extend_from_slice(more);
    gatewaytrust(
        &args,
        &[("OPENCLAW_GATEWAY_TOKEN", "a-token-from-the-environment")],
        None,
    )
    .await
}

const GOOD_TRUST: &str = "apiVersion: gatewaytrust.io/v1alpha1
kind: GatewayTrust
metadata: {name: gateway, namespace: e2e}
spec: {gateway: {url: http://127.0.0.1:PORT/}}
";

#[tokio::test]
async fn sync_once_ends_with_2_and_one_line_for_a_file_that_cannot_be_used() {
    let bad_approval = "apiVersion: gatewaytrust.io/v1alpha1
kind: DeviceApproval
metadata: {name: laptop, namespace: e2e}
spec: {gatewayTrustRef: {name: gateway}, device: {id: abc}, roles: [superuser]}
";
    let cases = [
        ("laptop.yaml", bad_approval, vec!["laptop.yaml", "roles", "superuser"]),
        ("broken.yaml", "kind: [", vec!["broken.yaml"]),
        ("nameless.yaml", "apiVersion: v1\n", vec!["nameless.yaml", "kind"]),
    ];
    for (name, text, expected) in cases {
        let dir = scratch("once");
        let folder = dir.path().join("git");
        std::fs::create_dir(&folder).expect("a folder");
        let trust = GOOD_TRUST.replace("PORT", &free_port().to_string());
        std::fs::write(folder.join("gateway.yaml"), trust).expect("a file");
        std::fs::write(folder.join(name), text).expect("a file");
        let ended = once(&folder, &dir.path().join("state"), &[]).await;
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        let said: Vec<&str> = ended
            .stderr
            .lines()
            .filter(|line| line.starts_with("gatewaytrust: "))
            .collect();
        assert_eq!(said.len(), 1, "{}", ended.stderr);
        for part in expected {
            assert!(said[0].contains(part), "{part:?} is not in: {said:?}");
        }
    }
}

#[tokio::test]
async fn sync_once_ends_with_2_where_there_is_nothing_to_do_and_1_where_nobody_answers() {
    let dir = scratch("once");
    let (folder, state) = (dir.path().join("git"), dir.path().join("state"));
    let ended = once(&folder, &state, &[]).await;
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    std::fs::create_dir(&folder).expect("a folder");
    let ended = once(&folder, &state, &[]).await;
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.contains("no GatewayTrust in"), "{ended:?}");
    let trust = GOOD_TRUST.replace("PORT", &free_port().to_string());
    std::fs::write(folder.join("gateway.yaml"), trust).expect("a file");
    let ended = once(&folder, &state, &["--timeout", "1"]).await;
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stdout.contains("ConnectFailed"), "{ended:?}");
}

/// A gateway with `auth.mode: password` takes the password, and a wrong one is said as such.
#[tokio::test]
async fn sync_signs_in_with_a_password() {
    let password = "the-password-of-this-gateway";
    let auth = serde_json::json!({"gateway": {"auth": {"mode": "password", "password": password}}});
    let (gateway, _slot) = own_gateway(Gateway::builder().token(password).config(auth)).await;
    let world = World::folder();
    world.credentials("not-that-one", None).await;
    let mut spec = url_spec(gateway.port());
    spec["gateway"]["auth"] = serde_json::json!({"passwordSecretRef": {"name": "credentials", "key": "token"}});
    world.trust(spec).await;
    let message = world
        .condition(Of::Gateway, "GatewayReachable", "False", "WrongToken")
        .await;
    assert!(
        message.contains("AUTH_"),
        "the gateway's own word is missing: {message}"
    );
    world.credentials(password, None).await;
    world.condition(Of::Gateway, "Ready", "True", "AsDeclared").await;
    world.shows_no_secret(&[password]).await;
}
