//! Pieces of the CRD schema that both resources share, and the CRD documents themselves. No IO.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{DeviceApproval, GatewayTrust};

/// `metav1.Condition` as a list-map by `type`, bounded.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "What holds at present. `Ready` is what GitOps tools wait for.",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "type": {"type": "string", "maxLength": 316, "description": "Which condition."},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds."},
                "reason": {"type": "string", "minLength": 1, "maxLength": 1024, "description": "Why: a constant, see docs/reasons."},
                "message": {"type": "string", "maxLength": 32768, "description": "What is wrong, the evidence, and what to do next."},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0, "description": "The generation of the spec that this speaks of."},
                "lastTransitionTime": {"type": "string", "format": "date-time", "description": "When `status` changed last."}
            }
        }
    })
}

/// A port by name or number.
pub fn port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "The Service's port, by name or number; may be left out where it has only one.",
        "x-kubernetes-int-or-string": true,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "maxLength": 63
    })
}

/// A point in time (RFC 3339).
pub fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time", "maxLength": 64})
}

/// Both CRDs as JSON documents, with `Ready=Unknown/Pending` as the status that every new object starts with.
///
/// # Errors
/// Only if a generated schema cannot be turned into JSON.
pub fn crds() -> Result<Vec<Value>, serde_json::Error> {
    [GatewayTrust::crd(), DeviceApproval::crd()]
        .into_iter()
        .map(with_initial_status)
        .collect()
}

/// Rust's unsigned formats (`uint8`, ...) mean nothing to an API server, which warns of each; the bounds stay.
fn drop_foreign_formats(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields
                .get("format")
                .and_then(Value::as_str)
                .is_some_and(|format| format.starts_with("uint"))
            {
                fields.remove("format");
            }
            fields.values_mut().for_each(drop_foreign_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_foreign_formats),
        _ => {}
    }
}

fn with_initial_status(crd: CustomResourceDefinition) -> Result<Value, serde_json::Error> {
    let mut crd = serde_json::to_value(crd)?;
    drop_foreign_formats(&mut crd);
    if let Some(status) = crd
        .pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/status")
        .and_then(Value::as_object_mut)
    {
        status.insert(
            "default".to_owned(),
            json!({"conditions": [{
                "type": "Ready", "status": "Unknown", "reason": "Pending",
                "message": "Waiting for the gatewaytrust operator. If this stays: is it running? kubectl get pods -A -l app.kubernetes.io/name=gatewaytrust",
                "lastTransitionTime": "1970-01-01T00:00:00Z"
            }]}),
        );
    }
    Ok(crd)
}
