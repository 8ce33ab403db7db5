//! A gateway behind TLS: an authority that is not known, one that is, and a name that is not the certificate's.

use serde_json::json;

use crate::harness::gateway::Gateway;
use crate::harness::nginx::TlsFront;
use crate::harness::skipped;
use crate::world::gateways::own_gateway;
use crate::world::{Of, World, origin, url_spec};

async fn trusted_by_its_authority(
    world: &World,
    gateway: &Gateway,
    front: &TlsFront,
    give_authority: impl AsyncFn(&str),
) {
    let mut spec = url_spec(gateway.port());
    spec["gateway"]["url"] = json!(format!("{}/", front.origin()));
    world.credentials(gateway.token(), Some(&front.origin())).await;
    world.trust(spec.clone()).await;
    let fails = async |says: &str| {
        let message = world
            .condition(Of::Gateway, "GatewayReachable", "False", "TLSFailed")
            .await;
        assert!(message.contains(says), "{says:?} is not in: {message}");
    };
    fails("spec.gateway.tls.caSecretRef").await;
    assert!(
        !gateway.log_text().contains("client=gatewaytrust"),
        "it signed in all the same"
    );

    // The Secret with the authority comes later than the reference to it.
    spec["gateway"]["tls"] = json!({"caSecretRef": {"name": "credentials", "key": "ca"}});
    world.trust(spec.clone()).await;
    world
        .condition(Of::Gateway, "GatewayReachable", "False", "SecretKeyMissing")
        .await;
    give_authority(&front.authority()).await;
    world
        .condition(Of::Gateway, "GatewayReachable", "True", "Connected")
        .await;

    spec["gateway"]["tls"]["serverName"] = json!("another.example");
    world.trust(spec.clone()).await;
    fails("spec.gateway.tls.serverName").await;
    spec["gateway"]["tls"]["serverName"] = json!("127.0.0.1");
    world.trust(spec).await;
    world.condition(Of::Gateway, "Ready", "True", "AsDeclared").await;
    world.shows_no_secret(&[gateway.token()]).await;
}

#[tokio::test]
async fn kubernetes_tls_needs_the_right_authority_and_name() {
    let (gateway, _slot) = own_gateway(Gateway::builder().token("token-behind-tls")).await;
    let Some(front) = TlsFront::start(&format!("127.0.0.1:{}", gateway.port())).await else {
        return skipped("TLS", "nginx is not installed");
    };
    let world = World::cluster().await;
    let cluster = world.in_cluster();
    let give = async |authority: &str| {
        let patch = json!({"stringData": {"ca": authority}}).to_string();
        let args = ["patch", "secret", "credentials", "--type=merge", "-p", &patch];
        cluster.kubectl(&args).await.ok();
    };
    trusted_by_its_authority(&world, &gateway, &front, give).await;
}

#[tokio::test]
async fn plain_text_where_tls_is_expected_fails_as_tls() {
    let fake = crate::fakes::Fake::http("HTTP/1.1 400 Bad Request\r\n\r\n".to_owned()).await;
    let world = World::folder();
    let mut spec = url_spec(fake.port());
    spec["gateway"]["url"] = json!(format!("{}/", origin(fake.port()).replace("http:", "https:")));
    world.credentials("a-token", None).await;
    world.trust(spec).await;
    world
        .condition(Of::Gateway, "GatewayReachable", "False", "TLSFailed")
        .await;
    world.shows_no_secret(&["a-token"]).await;
}
