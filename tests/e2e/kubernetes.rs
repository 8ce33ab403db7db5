//! Through `gatewaytrust run` and a real kube-apiserver, with the rights of `deploy/rbac.yaml`.

use crate::harness::gateway::Gateway;
use crate::harness::netns::Network;
use crate::harness::nginx::Nginx;
use crate::harness::skipped;
use crate::scenarios;
use crate::world::World;
use crate::world::gateways::{Managed, own_gateway, remote_url};

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
