//! The harness itself: that the parts are the real ones, and that hosts, proxies and users are told apart.

use serde_json::json;

use crate::harness::control_plane::{ADMIN, ControlPlane, OPERATOR};
use crate::harness::device::{ConnectOptions, ConnectOutcome, Device, DeviceIdentity};
use crate::harness::gateway::Gateway;
use crate::harness::netns::Network;
use crate::harness::nginx::Nginx;
use crate::harness::skipped;

#[tokio::test]
async fn a_remote_device_waits_for_approval_and_a_local_look_leaves_no_trace() {
    let network = match Network::new().await {
        Ok(network) => network,
        Err(why) => return skipped("a remote device waits for approval", why),
    };
    let mut gateway = Gateway::builder().admin_rpc(true).start().await;
    let (host, laptop) = (network.host(), DeviceIdentity::generate());
    let url = gateway.url_at(network.gateway_ip());
    let options = ConnectOptions::new(&url, gateway.token()).from(&host);

    let outcome = Device::connect(&laptop, &options).await;
    assert_eq!(outcome.refusal_code(), Some("PAIRING_REQUIRED"), "{outcome:?}");
    assert!(
        matches!(&outcome, ConnectOutcome::Refused { code: 1008, .. }),
        "{outcome:?}"
    );
    let details = outcome.refused();
    let pending = gateway.pending(&laptop.id()).await.expect("a pending record");
    assert_eq!(pending["requestId"], details["requestId"]);
    assert_eq!(pending["publicKey"], laptop.public_key());

    let admin = gateway.admin().await;
    let approved = admin
        .call("device.pair.approve", json!({"requestId": details["requestId"]}))
        .await;
    approved.expect("device.pair.approve");
    let conn = Device::connect(&laptop, &options).await.connected();
    assert!(conn.is_open().await);
    let all = admin
        .call("device.pair.list", json!({}))
        .await
        .expect("device.pair.list");
    assert_eq!(all["paired"].as_array().map(Vec::len), Some(1), "{all}");

    let rpc = reqwest::Client::new()
        .post(format!("http://127.0.0.1:{}/api/v1/admin/rpc", gateway.port()))
        .bearer_auth(gateway.token())
        .json(&json!({"method": "device.pair.list"}));
    let answer = rpc.send().await.expect("the admin RPC");
    assert_eq!(answer.status(), 200);

    // Pairing survives a restart, and a device's own token serves instead of the shared one.
    let own = conn.hello()["auth"]["deviceToken"]
        .as_str()
        .expect("a device token")
        .to_owned();
    gateway.restart().await;
    assert_eq!(conn.closed().await.0, 1012);
    assert!(!conn.is_open().await);
    let by_own_token = ConnectOptions {
        token: None,
        device_token: Some(own),
        ..options.clone()
    };
    drop(Device::connect(&laptop, &by_own_token).await.connected());

    gateway.wipe_state().await;
    assert!(matches!(
        Device::connect(&laptop, &options).await,
        ConnectOutcome::Unreachable(_)
    ));
    gateway.start().await;
    assert!(gateway.paired(&laptop.id()).await.is_none());
}

#[tokio::test]
async fn a_client_behind_nginx_is_known_by_its_own_address_once_nginx_is_trusted() {
    let name = "a client behind nginx";
    let network = match Network::new().await {
        Ok(network) => network,
        Err(why) => return skipped(name, why),
    };
    // The outside look works there too.
    let local_clients_wait = json!({"gateway": {"nodes": {"pairing": {"autoApproveLocal": false}}}});
    let gateway = Gateway::builder().config(local_clients_wait).start().await;
    let (client, proxy) = (network.host(), network.host());
    let upstream = format!("{}:{}", network.gateway_ip(), gateway.port());
    let Some(nginx) = Nginx::start(&proxy, &upstream).await else {
        return skipped(name, "nginx is not installed");
    };
    let laptop = DeviceIdentity::generate();
    let options = ConnectOptions::new(&nginx.url(), gateway.token()).from(&client);

    match Device::connect(&laptop, &options).await {
        ConnectOutcome::Http { status: 403, body } => {
            assert!(body.contains("proxy_attribution_required"), "{body}");
        }
        other => panic!("expected 403, got {other:?}"),
    }

    let trusted = json!([format!("{}/32", proxy.ip)]);
    let patched = gateway
        .patch_config(
            json!({"gateway": {"trustedProxies": trusted}}),
            &["gateway.trustedProxies"],
        )
        .await;
    patched.expect("config.patch");
    assert_eq!(gateway.config_file()["gateway"]["trustedProxies"], trusted);
    let outcome = crate::harness::wait::until(
        "the new trust to hold",
        std::time::Duration::from_secs(10),
        async || match Device::connect(&laptop, &options).await {
            outcome @ ConnectOutcome::Refused { .. } => Ok(outcome),
            other => Err(format!("{other:?}")),
        },
    )
    .await;
    assert_eq!(outcome.refusal_code(), Some("PAIRING_REQUIRED"), "{outcome:?}");
    // The gateway writes its line a moment after the goodbye.
    let patience = std::time::Duration::from_secs(10);
    crate::harness::wait::until("the goodbye to be heard", patience, async || {
        gateway.log_text().contains("code=1008")
    })
    .await;
    let pending = gateway.pending(&laptop.id()).await.expect("a pending record");
    assert_eq!(pending["remoteIp"], client.ip.to_string());
}

#[tokio::test]
async fn the_api_server_tells_users_apart() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace("selftest").await;
    let manifest = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "one", "namespace": namespace}, "data": {"a": "b"},
    });
    let manifest = manifest.to_string();
    plane.apply(&manifest).await;
    let refused = plane.kubectl(OPERATOR, &["apply", "-f", "-"], Some(&manifest)).await;
    assert!(
        !refused.status.success() && refused.stderr.contains("Forbidden"),
        "{refused:?}"
    );
    let client = plane.client(ADMIN).await;
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> = kube::Api::namespaced(client, &namespace);
    let found = maps.get("one").await.expect("the ConfigMap");
    assert_eq!(found.data.expect("data")["a"], "b");
}

#[tokio::test]
async fn an_api_server_comes_back_with_its_objects() {
    let mut plane = ControlPlane::start().await;
    let namespace = plane.namespace("restart").await;
    let client = plane.client(ADMIN).await;
    plane.stop_apiserver();
    assert!(client.apiserver_version().await.is_err());
    plane.start_apiserver().await;
    let found = plane.kubectl(ADMIN, &["get", "namespace", &namespace], None).await;
    assert!(found.status.success(), "{found:?}");
}
