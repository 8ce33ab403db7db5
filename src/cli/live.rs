//! The live cluster as input of `plan`: read once, with the caller's own rights.

use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::config::KubeConfigOptions;
use kube::{Client, Config};

use super::CommandError;
use super::sources::{GatewayState, Sources};
use crate::api::validated::ValidatedTrust;
use crate::api::{DeviceApproval, GatewayTrust};
use crate::cluster::SourceKey;
use crate::cluster::dump::Dump;
use crate::controller::{Options, front, key_of, object, record, target};
use crate::discovery::{self, GatewayView};
use crate::gateway::websocket::WebSocketConnector;
use crate::gateway::{Connector as _, Door as _};

/// A client from the kubeconfig, or from inside a cluster.
pub(super) async fn client() -> Result<Client, CommandError> {
    let failed = |problem: String| {
        CommandError::Failed(format!(
            "no connection to a Kubernetes API server: {problem}. Set KUBECONFIG, or run inside a cluster."
        ))
    };
    let config = match Config::from_kubeconfig(&KubeConfigOptions::default()).await {
        Ok(config) => config,
        Err(error) => Config::incluster().map_err(|_| failed(error.to_string()))?,
    };
    Client::try_from(config).map_err(|error| failed(error.to_string()))
}

async fn list(client: &Client, resource: ApiResource, selector: &str, dump: &mut Dump) -> Result<(), CommandError> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let mut parameters = ListParams::default().labels(selector).limit(500);
    loop {
        let page = match api.list(&parameters).await {
            Ok(page) => page,
            Err(error) => {
                return Err(CommandError::Failed(format!(
                    "{} could not be listed: {}",
                    resource.plural,
                    object::describe(&error)
                )));
            }
        };
        for item in page.items {
            // The list leaves the type out of its items.
            let mut value = serde_json::to_value(&item).map_err(|error| CommandError::Failed(error.to_string()))?;
            if let Some(fields) = value.as_object_mut() {
                fields.insert("apiVersion".to_owned(), resource.api_version.clone().into());
                fields.insert("kind".to_owned(), resource.kind.clone().into());
            }
            dump.add_object("cluster", value).map_err(CommandError::Failed)?;
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(()),
        }
    }
}

/// Reads what `plan` needs.
pub(super) async fn sources(allow_insecure_urls: bool) -> Result<Sources, CommandError> {
    let client = client().await?;
    let mut sources = Sources::default();
    let dump = &mut sources.dump;
    dump.snapshot.exists = true;
    for resource in [
        ApiResource::erase::<GatewayTrust>(&()),
        ApiResource::erase::<DeviceApproval>(&()),
    ] {
        list(&client, resource, "", dump).await?;
    }
    for resource in [
        ApiResource::erase::<Namespace>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<EndpointSlice>(&()),
        ApiResource::erase::<Ingress>(&()),
        ApiResource::erase::<IngressClass>(&()),
    ] {
        list(&client, resource, "", dump).await?;
    }
    let trusts: Vec<GatewayTrust> = dump.trusts.iter().map(|(_, trust)| trust.clone()).collect();
    let parsed = trusts
        .iter()
        .filter_map(|trust| Some((trust, ValidatedTrust::parse(&trust.spec).ok()?)));
    for (trust, parsed) in parsed {
        let key = key_of(trust);
        for wanted in discovery::sources(GatewayView {
            key: &key,
            trust: &parsed,
        }) {
            if let SourceKey::Pods(_, selector) = wanted {
                list(&client, ApiResource::erase::<Pod>(&()), &selector, dump).await?;
            }
        }
        let state = gateway_state(&client, trust, &parsed, allow_insecure_urls).await;
        sources.gateways.insert(Some(key), state);
    }
    Ok(sources)
}

/// Asks the gateway itself, as the operator's own device and only where that is paired already: a handshake with a
/// new device could be paired silently. Where it cannot be asked, the plan says that its config is not known.
async fn gateway_state(
    client: &Client,
    trust: &GatewayTrust,
    parsed: &ValidatedTrust,
    allow_insecure_urls: bool,
) -> GatewayState {
    let key = key_of(trust);
    let own_device = trust
        .status
        .as_ref()
        .and_then(|status| status.gateway.as_ref())
        .map(|gateway| gateway.operator_device.clone());
    let mut state = GatewayState {
        own_device: own_device.clone(),
        ..GatewayState::default()
    };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &key.namespace);
    let Ok(Some(secret)) = secrets.get_opt(&record::secret_name(&key.name)).await else {
        return state;
    };
    let Ok(record) = record::read(&key, &secret) else {
        return state;
    };
    state.owned.clone_from(&record.owned);
    if own_device.as_deref() != Some(record.identity.device_id().as_str()) {
        return state;
    }
    let options = Options {
        allow_insecure_urls,
        ..Options::default()
    };
    let Ok(target) = target::resolve(client, &options, &key, parsed).await else {
        return state;
    };
    // The same name as the operator's: the gateway's list shows whose device it is.
    let name = front::device_name(&front::cluster_name(client).await, &key);
    match WebSocketConnector
        .connect(&target.endpoint, &target.credential, &record.identity, &name)
        .await
    {
        Ok(door) => {
            state.config = door.config().await.ok();
            state.devices = door.devices().await.ok();
        }
        Err(error) => tracing::warn!(gateway = %key, "the gateway cannot be asked from here: {error}"),
    }
    state
}
