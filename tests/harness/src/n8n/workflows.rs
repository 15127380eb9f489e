//! The workflows that are created: each starts at a webhook and answers with its last node.

use serde_json::{Value, json};

/// Gives back the nonce it is sent, the execution's id and the header the credential sets.
pub const ECHO: &str = "harness-echo";
/// Stores the file it is sent as binary data.
pub const BINARY: &str = "harness-binary";
/// Calls [`ECHO`] with a request that carries the credential.
pub const CALL: &str = "harness-call";

/// Returns each workflow with its webhook's path.
pub fn all(credential: &str) -> [(&'static str, Value); 3] {
    [
        (ECHO, workflow(ECHO, &answer())),
        (BINARY, workflow(BINARY, &answer())),
        (CALL, workflow(CALL, &call(credential))),
    ]
}

fn workflow(path: &str, last: &Value) -> Value {
    let name = last.get("name").cloned().unwrap_or_default();
    json!({
        "name": path,
        "nodes": [webhook(path), last],
        "connections": {"Webhook": {"main": [[{"node": name, "type": "main", "index": 0}]]}},
        "settings": {"executionOrder": "v1"},
    })
}

fn webhook(path: &str) -> Value {
    json!({
        "id": crate::write::nonce(),
        "name": "Webhook",
        "type": "n8n-nodes-base.webhook",
        "typeVersion": 2,
        "position": [0, 0],
        "webhookId": crate::write::nonce(),
        "parameters": {
            "httpMethod": "POST",
            "path": path,
            "responseMode": "lastNode",
            "options": {},
        },
    })
}

fn answer() -> Value {
    let fields = "{ execution: String($execution.id), nonce: $json.body.nonce, \
                  key: $json.headers['x-harness-key'] || null }";
    json!({
        "id": crate::write::nonce(),
        "name": "Answer",
        "type": "n8n-nodes-base.set",
        "typeVersion": 3.4,
        "position": [220, 0],
        "parameters": {
            "mode": "raw",
            "jsonOutput": format!("={{{{ JSON.stringify({fields}) }}}}"),
            "options": {},
        },
    })
}

fn call(credential: &str) -> Value {
    json!({
        "id": crate::write::nonce(),
        "name": "Call",
        "type": "n8n-nodes-base.httpRequest",
        "typeVersion": 4.2,
        "position": [220, 0],
        "parameters": {
            "method": "POST",
            "url": format!("http://127.0.0.1:5678/webhook/{ECHO}"),
            "authentication": "genericCredentialType",
            "genericAuthType": "httpHeaderAuth",
            "sendBody": true,
            "specifyBody": "json",
            "jsonBody": "={{ JSON.stringify({ nonce: $json.body.nonce }) }}",
            "options": {},
        },
        "credentials": {"httpHeaderAuth": {"id": credential, "name": "Harness header"}},
    })
}
