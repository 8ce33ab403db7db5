//! Through `gatewaytrust run` and a real kube-apiserver, with the rights of `deploy/rbac.yaml`.

use serde_json::{Value, json};

use crate::harness::device::DeviceIdentity;
use crate::harness::gateway::Gateway;
use crate::harness::netns::Network;
use crate::harness::nginx::Nginx;
use crate::harness::process::scratch;
use crate::harness::{gatewaytrust, skipped};
use crate::scenarios;
use crate::world::gateways::{Managed, own_gateway, remote_url};
use crate::world::{Of, World, approval};

const ONLY_LOOPBACK: &str = "this machine has no IPv4 address besides loopback";

#[tokio::test]
async fn kubernetes_an_approval_lets_a_device_in_and_its_deletion_puts_it_out() {
    let (managed, world) = Managed::in_cluster().await;
    match &managed.network {
        Ok(network) => scenarios::let_in_and_put_out(&world, &managed.gateway, network, &network.host()).await,
        Err(why) => skipped("kubernetes: an approval lets a device in", why),
    }
}

#[tokio::test]
async fn kubernetes_a_device_that_asks_for_more_is_held_and_never_paired() {
    let (managed, world) = Managed::in_cluster().await;
    match managed.remote_url() {
        Some(url) => scenarios::held_for_asking_more(&world, &managed.gateway, &url).await,
        None => skipped("kubernetes: a device that asks for more", ONLY_LOOPBACK),
    }
}

#[tokio::test]
async fn kubernetes_a_declared_proxy_is_trusted_and_another_spelling_closes_nobody() {
    let name = "kubernetes: a declared proxy";
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
    let world = World::cluster().await;
    scenarios::declared_proxy(&world, &gateway, &network, &nginx.url(), &proxy).await;
}

#[tokio::test]
async fn kubernetes_the_operator_stopped_or_killed_and_the_gateway_wiped_lose_nothing() {
    let (mut gateway, _slot) = own_gateway(Gateway::builder().token("token-of-a-gateway-that-is-wiped")).await;
    let Some(url) = remote_url(&gateway) else {
        return skipped("kubernetes: outages", ONLY_LOOPBACK);
    };
    let world = World::own_cluster().await;
    scenarios::outages(&world, &mut gateway, &url).await;
}

/// `plan` on a live cluster asks the gateway as the operator's own device, and what it records plans the same offline.
#[tokio::test]
async fn kubernetes_a_live_plan_asks_the_gateway_and_what_it_records_plans_the_same() {
    let (gateway, _slot) = own_gateway(Gateway::builder().token("token-of-the-planned-gateway")).await;
    let world = World::own_cluster().await;
    world.manage(&gateway).await;
    let device = DeviceIdentity::generate();
    world.approve("laptop", approval(&device, &["operator.read"])).await;
    world
        .condition(Of::Approval("laptop"), "Approved", "False", "WaitingForDevice")
        .await;
    let folder = scratch("plan");
    let recorded = folder.path().join("state.json").display().to_string();
    let kubeconfig = world.in_cluster().kubeconfig();
    let envs = [("KUBECONFIG", kubeconfig.as_str())];
    let live = [
        "plan",
        "-o",
        "json",
        "--allow-insecure-gateway-urls",
        "--record",
        &recorded,
    ];
    let live: Value = serde_json::from_str(&gatewaytrust(&live, &envs, None).await.ok()).expect("JSON");
    let planned = &live["gateways"][0];
    assert_eq!(
        planned["config"],
        json!({"known": true, "changes": false, "patch": {}}),
        "{live}"
    );
    assert_eq!(planned["devices"][0]["deviceId"], device.id(), "{live}");
    assert_eq!(planned["devices"][0]["verdict"], "Wait", "{live}");

    let state = std::fs::read_to_string(&recorded).expect("the recorded state");
    assert!(!state.contains(gateway.token()), "the recorded state holds the token");
    let objects = ["get", "gatewaytrusts,deviceapprovals", "-o", "yaml"];
    let objects = world.in_cluster().kubectl(&objects).await.ok();
    let offline = ["plan", "-o", "json", "-f", "-", "--gateway-state", &recorded];
    let offline: Value = serde_json::from_str(&gatewaytrust(&offline, &[], Some(&objects)).await.ok()).expect("JSON");
    assert_eq!(offline["gateways"], live["gateways"]);
    // Asking left no device behind: only the operator's own is paired.
    let list = gateway
        .admin()
        .await
        .call("device.pair.list", json!({}))
        .await
        .expect("list");
    assert_eq!(list["paired"].as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list["pending"].as_array().map(Vec::len), Some(0), "{list}");
}
