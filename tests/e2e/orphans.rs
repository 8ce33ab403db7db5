//! Approvals whose `GatewayTrust` is not there yet, not there any more, or deleted together with them.

use crate::harness::device::{ConnectOptions, DeviceIdentity};
use crate::harness::gateway::Gateway;
use crate::harness::{skipped, wait};
use crate::world::gateways::{own_gateway, remote_url};
use crate::world::{A_WHILE, Of, World, approval, enter};

async fn gone(world: &World, of: Of<'_>) {
    let what = format!("{of:?} being gone");
    wait::until(&what, std::time::Duration::from_secs(60), async || {
        world.in_cluster().object(of).await.is_null()
    })
    .await;
}

#[tokio::test]
async fn an_approval_without_a_gateway_says_so_and_waits_or_is_given_up() {
    let (gateway, _slot) = own_gateway(Gateway::builder()).await;
    let Some(url) = remote_url(&gateway) else {
        return skipped(
            "approvals without a gateway",
            "this machine has no IPv4 address besides loopback",
        );
    };
    let world = World::cluster().await;
    let device = DeviceIdentity::generate();
    world.approve("laptop", approval(&device, &["operator.read"])).await;
    let message = world
        .condition(Of::Approval("laptop"), "Ready", "False", "GatewayTrustNotFound")
        .await;
    assert!(
        message.contains("kubectl get gatewaytrusts -n"),
        "no next command: {message}"
    );

    // Its gateway comes, and it is in force.
    world.manage(&gateway).await;
    world
        .condition(Of::Approval("laptop"), "Ready", "True", "InForce")
        .await;
    let options = ConnectOptions::new(&url, gateway.token());
    let conn = enter(&device, &options).await;

    // Its gateway is not managed any more: the device stays, and the approval says so.
    world
        .approve("given-up", approval(&DeviceIdentity::generate(), &["operator.read"]))
        .await;
    world
        .condition(Of::Approval("given-up"), "Ready", "True", "InForce")
        .await;
    let cluster = world.in_cluster();
    cluster.kubectl(&["delete", "gatewaytrust", "gateway"]).await.ok();
    world
        .condition(Of::Approval("laptop"), "Ready", "False", "GatewayTrustNotFound")
        .await;
    assert!(conn.is_open().await, "nobody asked for the device to be revoked");

    // Deleting an approval now waits, because nothing can be revoked, and says how to give that up.
    world.withdraw_without_waiting("given-up").await;
    wait::until("the way out being told", A_WHILE * 20, async || {
        let status = world.status(Of::Approval("given-up")).await;
        status.to_string().contains("gatewaytrust.io/abandon=true")
    })
    .await;
    cluster
        .kubectl(&["annotate", "deviceapproval", "given-up", "gatewaytrust.io/abandon=true"])
        .await
        .ok();
    gone(&world, Of::Approval("given-up")).await;

    // Managed again, and then everything is deleted together, the gateway's object first: the device is revoked.
    world.manage(&gateway).await;
    world
        .condition(Of::Approval("laptop"), "Ready", "True", "InForce")
        .await;
    cluster
        .kubectl(&["delete", "gatewaytrust", "gateway", "--wait=false"])
        .await
        .ok();
    world.withdraw_without_waiting("laptop").await;
    assert_eq!(conn.closed().await, (4001, "device removed".to_owned()));
    gone(&world, Of::Approval("laptop")).await;
    gone(&world, Of::Gateway).await;
    assert!(gateway.paired(&device.id()).await.is_none());
}
