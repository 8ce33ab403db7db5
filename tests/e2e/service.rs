//! A gateway behind a Service of the cluster: where it is, its token, its proxies, and how the operator gets paired.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::fakes::Fake;
use crate::harness::control_plane::{ADMIN, OPERATOR};
use crate::harness::device::{ConnectOptions, DeviceIdentity};
use crate::harness::gateway::Gateway;
use crate::harness::netns::{Host, Network};
use crate::harness::nginx::Nginx;
use crate::harness::{skipped, wait};
use crate::scenarios::{config_hash, refused_for_attribution, until_trusted};
use crate::world::gateways::{own_address, own_gateway};
use crate::world::objects::{SERVICE, service_spec};
use crate::world::{A_WHILE, Of, PATIENCE, World, approval, enter, refused_for_pairing, repository_file};

const ONLY_LOOPBACK: &str = "this machine has no IPv4 address besides loopback";

/// The operator waits for a person, who types what the condition says.
async fn approved_by_a_person(world: &World, gateway: &Gateway) {
    let message = world
        .condition(Of::Gateway, "GatewayReachable", "False", "EnrolmentPending")
        .await;
    let namespace = &world.in_cluster().namespace;
    let command = format!("kubectl exec -n {namespace} svc/{SERVICE} -- openclaw devices approve ");
    let rest = message
        .split_once(&command)
        .unwrap_or_else(|| panic!("{command:?} is not in: {message}"))
        .1;
    let request = rest.split_whitespace().next().expect("a request id");
    let admin = gateway.admin().await;
    let approved = admin.call("device.pair.approve", json!({"requestId": request})).await;
    approved.expect("device.pair.approve");
    world
        .condition(Of::Gateway, "GatewayReachable", "True", "Connected")
        .await;
}

/// A client behind this proxy is refused for the proxy; then something is done, and it is known by its own address.
async fn trusted_after(
    gateway: &Gateway,
    network: &Network,
    proxy: &Host,
    what: impl Future<Output = ()>,
) -> Option<(DeviceIdentity, ConnectOptions, Nginx)> {
    let upstream = format!("{}:{}", network.gateway_ip(), gateway.port());
    let nginx = Nginx::start(proxy, &upstream).await?;
    let (client, browser) = (network.host(), DeviceIdentity::generate());
    let options = ConnectOptions::new(&nginx.url(), gateway.token()).from(&client);
    refused_for_attribution(&browser, &options).await;
    what.await;
    until_trusted(&browser, &options).await;
    let pending = gateway.pending(&browser.id()).await.expect("a pending record");
    assert_eq!(pending["remoteIp"], client.ip.to_string());
    Some((browser, options, nginx))
}

async fn trusted_via(world: &World, address: Ipv4Addr) -> String {
    let cidr = format!("{address}/32");
    wait::until("status.trustedProxies", PATIENCE, async || {
        let status = world.status(Of::Gateway).await;
        let all = status["trustedProxies"].as_array().cloned().unwrap_or_default();
        let found = all.iter().find(|entry| entry["cidr"] == cidr);
        found.map(|entry| entry["via"].to_string()).ok_or(format!("{all:?}"))
    })
    .await
}

#[tokio::test]
async fn a_service_needs_no_token_one_command_enrols_and_its_ingress_is_trusted() {
    let name = "a gateway behind a Service";
    let network = match Network::new().await {
        Ok(network) => network,
        Err(why) => return skipped(name, why),
    };
    let (gateway, _slot) = own_gateway(Gateway::builder().token("token-found-on-the-pod")).await;
    let world = World::cluster().await;
    let cluster = world.in_cluster();
    cluster
        .gateway_objects(gateway.token(), network.gateway_ip(), gateway.port())
        .await;
    world.trust(service_spec()).await;
    approved_by_a_person(&world, &gateway).await;
    world.condition(Of::Gateway, "Ready", "True", "AsDeclared").await;

    // Found by itself: Service, Ingress, IngressClass, the controller's pod and its address.
    let ingress = network.host();
    let found = trusted_after(&gateway, &network, &ingress, cluster.ingress_nginx(ingress.ip)).await;
    let Some((browser, options, _nginx)) = found else {
        return skipped(name, "nginx is not installed");
    };
    let via = trusted_via(&world, ingress.ip).await;
    for part in [
        "claw",
        "IngressClass nginx",
        "Pod ingress-nginx/ingress-nginx-controller-",
    ] {
        assert!(via.contains(part), "{part:?} is not in: {via}");
    }
    world.approve("browser", approval(&browser, &["operator.read"])).await;
    drop(enter(&browser, &options).await);

    // By a person's word: pods that no route leads to.
    let tunnel = network.host();
    let named = async {
        let pod = json!({
            "metadata": {"name": "tunnel-0", "labels": {"app": "tunnel"}},
            "spec": {"containers": [{"name": "tunnel", "image": "tunnel"}]},
        });
        cluster.pod(&cluster.namespace, pod, tunnel.ip).await;
        let mut spec = service_spec();
        spec["proxies"] = json!({"named": [{"name": "tunnel", "podSelector": {"matchLabels": {"app": "tunnel"}}}]});
        world.trust(spec).await;
    };
    let found = trusted_after(&gateway, &network, &tunnel, named).await;
    assert!(found.is_some(), "nginx was there a moment ago");
    assert!(trusted_via(&world, tunnel.ip).await.contains("spec.proxies.named"));
    // Together with the one that was found.
    trusted_via(&world, ingress.ip).await;
    drop(enter(&browser, &options).await);

    // A proxy that is gone is trusted no longer.
    let delete = ["delete", "pod", "tunnel-0", "--grace-period=0", "--force"];
    cluster.kubectl(&delete).await.ok();
    wait::until("the gateway to trust one proxy", PATIENCE, async || {
        let listed = gateway.config_file()["gateway"]["trustedProxies"].take();
        let wanted = [format!("{}/32", ingress.ip), ingress.ip.to_string()];
        match listed.as_array().map(Vec::as_slice) {
            Some([one]) if wanted.iter().any(|wanted| one == wanted) => Ok(()),
            _ => Err(listed),
        }
    })
    .await;
    world.shows_no_secret(&[gateway.token()]).await;
}

#[tokio::test]
async fn the_admin_plugin_enrols_is_complained_of_and_two_replicas_stop_every_write() {
    let Some(address) = own_address() else {
        return skipped("enrolment by the admin plugin", ONLY_LOOPBACK);
    };
    let builder = Gateway::builder().token("token-of-the-admin-plugin").admin_rpc(true);
    let (gateway, _slot) = own_gateway(builder).await;
    let world = World::cluster().await;
    let cluster = world.in_cluster();
    cluster.gateway_objects(gateway.token(), address, gateway.port()).await;
    world.trust(service_spec()).await;
    world
        .condition(Of::Gateway, "GatewayReachable", "True", "Connected")
        .await;
    let message = world
        .condition(Of::Gateway, "Degraded", "True", "AdminRpcBypassesPairing")
        .await;
    let command = "openclaw config set plugins.entries.admin-http-rpc.enabled false";
    assert!(message.contains(command), "no next command: {message}");

    cluster.gateway_pod("openclaw-1", Ipv4Addr::new(192, 0, 2, 7)).await;
    let both = [("openclaw-0", address), ("openclaw-1", Ipv4Addr::new(192, 0, 2, 7))];
    cluster.endpoints(&both, gateway.port()).await;
    let message = world
        .condition(Of::Gateway, "GatewayReachable", "False", "MultipleReplicas")
        .await;
    assert!(
        message.contains("kubectl scale --replicas=1"),
        "no next command: {message}"
    );
    let before = config_hash(&gateway).await;
    let device = DeviceIdentity::generate();
    world.approve("device", approval(&device, &["operator.read"])).await;
    let mut spec = service_spec();
    spec["proxies"] = json!({"ranges": [{"cidr": "203.0.113.0/24", "reason": "to have something to write"}]});
    world.trust(spec).await;
    let options = ConnectOptions::new(&gateway.url_at(address), gateway.token());
    refused_for_pairing(&device, &options).await;
    wait::throughout("nothing being written", A_WHILE, async || {
        gateway.paired(&device.id()).await.is_none() && config_hash(&gateway).await == before
    })
    .await;

    cluster.endpoints(&[("openclaw-0", address)], gateway.port()).await;
    drop(enter(&device, &options).await);
    world.condition(Of::Gateway, "TrustApplied", "True", "AsDeclared").await;
    assert_ne!(config_hash(&gateway).await, before);
    world.shows_no_secret(&[gateway.token()]).await;
}

#[tokio::test]
async fn a_token_never_goes_to_an_address_that_is_no_pod_of_the_namespace() {
    let Some(address) = own_address() else {
        return skipped("unsafe Services", ONLY_LOOPBACK);
    };
    let fake = Fake::silent().await;
    let world = World::cluster().await;
    let cluster = world.in_cluster();
    world.trust(service_spec()).await;
    let message = world
        .condition(Of::Gateway, "GatewayReachable", "False", "ServiceNotFound")
        .await;
    assert!(message.contains("kubectl get services"), "no next command: {message}");

    let unsafe_because = async |why: &str| {
        wait::until(&format!("UnsafeService, because it {why}"), PATIENCE, async || {
            let status = world.status(Of::Gateway).await;
            let reachable = crate::world::condition_of(&status, "GatewayReachable");
            let message = reachable["message"].as_str().unwrap_or_default();
            let said = reachable["reason"] == "UnsafeService" && message.contains(why);
            if said { Ok(()) } else { Err(reachable.clone()) }
        })
        .await;
    };
    let ports = json!([{"name": "gateway", "port": 18789}]);
    cluster
        .service(json!({"type": "ExternalName", "externalName": "gateway.example", "ports": ports}))
        .await;
    unsafe_because("is an ExternalName").await;

    cluster.kubectl(&["delete", "service", SERVICE]).await.ok();
    cluster
        .gateway_objects("a-token-for-nobody", address, fake.port())
        .await;
    cluster.kubectl(&["delete", "service", SERVICE]).await.ok();
    cluster.service(json!({"ports": ports})).await;
    unsafe_because("has no selector").await;
    let seen_before = fake.connections();

    cluster.kubectl(&["delete", "service", SERVICE]).await.ok();
    cluster
        .slice(vec![json!({"addresses": [address.to_string()]})], fake.port())
        .await;
    cluster
        .service(json!({"selector": {"app": "openclaw"}, "ports": ports}))
        .await;
    unsafe_because("has an endpoint that is no pod").await;
    // A pod of the namespace, but at an address that is not its own.
    cluster.gateway_pod("openclaw-0", Ipv4Addr::new(192, 0, 2, 9)).await;
    cluster.endpoints(&[("openclaw-0", address)], fake.port()).await;
    unsafe_because("has an endpoint whose address is not its pod's").await;
    wait::throughout("no connection", A_WHILE, async || fake.connections() == seen_before).await;
    world.shows_no_secret(&["a-token-for-nobody"]).await;
}

#[tokio::test]
async fn a_source_that_may_not_be_read_is_named_and_approvals_go_on() {
    let Some(address) = own_address() else {
        return skipped("a forbidden source", ONLY_LOOPBACK);
    };
    let (gateway, _slot) = own_gateway(Gateway::builder().token("token-beside-a-forbidden-source")).await;
    let world = World::own_cluster().await;
    let cluster = world.in_cluster();
    let rights = repository_file("deploy/rbac.yaml");
    let fewer = rights.replace("[ingresses, ingressclasses]", "[ingressclasses]");
    assert_ne!(rights, fewer);
    cluster.plane.apply(&fewer).await;
    wait::until("the right to be taken away", PATIENCE, async || {
        let may = ["auth", "can-i", "list", "ingresses.networking.k8s.io", "-A"];
        !cluster.plane.kubectl(OPERATOR, &may, None).await.status.success()
    })
    .await;
    cluster.gateway_objects(gateway.token(), address, gateway.port()).await;
    world.trust(service_spec()).await;
    approved_by_a_person(&world, &gateway).await;

    let message = world
        .condition(Of::Gateway, "ProxiesDiscovered", "False", "SourceUnavailable")
        .await;
    assert!(
        message.contains("ingresses.networking.k8s.io") && message.contains("kubectl auth can-i"),
        "{message}"
    );
    world
        .condition(Of::Gateway, "Degraded", "True", "SourceUnavailable")
        .await;
    let device = DeviceIdentity::generate();
    world.approve("device", approval(&device, &["operator.read"])).await;
    let options = ConnectOptions::new(&gateway.url_at(address), gateway.token());
    let conn = enter(&device, &options).await;
    world.withdraw("device").await;
    assert_eq!(conn.closed().await, (4001, "device removed".to_owned()));

    cluster.plane.apply(&rights).await;
    world.condition(Of::Gateway, "Degraded", "False", "NothingWrong").await;
    world.condition(Of::Gateway, "Ready", "True", "AsDeclared").await;
    world.shows_no_secret(&[gateway.token()]).await;
}

#[tokio::test]
async fn the_operator_has_no_right_that_its_file_does_not_give() {
    let world = World::cluster().await;
    let plane = &world.in_cluster().plane;
    let may = async |verb: &str, what: &str| {
        let args = ["auth", "can-i", verb, what, "-A"];
        plane.kubectl(OPERATOR, &args, None).await.status.success()
    };
    for (verb, what) in [
        ("list", "secrets"),
        ("watch", "secrets"),
        ("delete", "secrets"),
        ("create", "pods"),
        ("create", "pods/exec"),
        ("delete", "deviceapprovals.gatewaytrust.io"),
        ("create", "deviceapprovals.gatewaytrust.io"),
        ("patch", "services"),
        ("list", "configmaps"),
    ] {
        assert!(!may(verb, what).await, "it may {verb} {what}");
    }
    assert!(may("get", "secrets").await);
    let found = plane
        .kubectl(ADMIN, &["get", "clusterrole", "gatewaytrust", "-o", "json"], None)
        .await
        .ok();
    let role: Value = serde_json::from_str(&found).expect("JSON");
    assert!(!role["rules"].to_string().contains('*'), "{role}");
}
