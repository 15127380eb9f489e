//! n8n through the REST interface its own editor uses, and through its webhooks.
//!
//! Routes and bodies as in n8n 2.41: `/rest/owner/setup`, `/rest/login`, `/rest/credentials`,
//! `/rest/workflows` with `/activate`, `/rest/executions`, `/rest/binary-data`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, multipart};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::digest::sha256;
use crate::gguf::Noise;
use crate::ledger::Write;
use crate::stack::{Service, Stack};
use crate::web::Web;

pub mod workflows;

/// Name of the header which the credential adds; n8n shows it, unlike the value.
pub const HEADER: &str = "X-Harness-Key";

/// What seeding made in n8n, and what is needed to look at it again.
#[derive(Serialize, Deserialize)]
pub struct Seeded {
    pub email: String,
    pub password: String,
    pub credential: String,
    /// The credential's secret value.
    pub secret: String,
    /// Workflow ids by webhook path.
    pub workflows: HashMap<String, String>,
    pub executions: Vec<Write>,
}

pub struct N8n(Web);

/// One execution as n8n lists it.
pub struct Execution {
    pub status: String,
    pub workflow: String,
}

impl N8n {
    /// Opens n8n without logging in: enough for webhooks.
    pub fn new(stack: &Stack, timeout: Duration) -> Result<Self> {
        Ok(Self(Web::new(&base(stack)?, timeout)?))
    }

    /// Logs in, waiting out the limit of five logins a minute for one account.
    pub fn log_in(&mut self, email: &str, password: &str) -> Result<()> {
        let body = json!({"emailOrLdapLoginId": email, "password": password});
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let answer = self
                .0
                .send_any(&Method::POST, "/rest/login", |request| request.json(&body))?;
            match answer.status {
                200 => return self.keep_cookie(&answer.headers),
                429 if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_secs(2));
                }
                status => bail!("n8n refused the login of {email} with status {status}"),
            }
        }
    }

    fn keep_cookie(&mut self, headers: &reqwest::header::HeaderMap) -> Result<()> {
        let cookie = headers
            .get_all("set-cookie")
            .iter()
            .filter_map(|value| value.to_str().ok()?.split(';').next())
            .find(|cookie| cookie.starts_with("n8n-auth="))
            .context("n8n's answer to the login has no n8n-auth cookie")?;
        self.0.set_header("cookie", cookie)
    }

    /// Runs the echo workflow through its webhook.
    pub fn echo(&self) -> Result<Write> {
        let nonce = crate::write::nonce();
        let answer = self.webhook(workflows::ECHO, &nonce)?;
        Ok(Write::Execution {
            execution: execution_id(&answer, &nonce)?,
            nonce,
        })
    }

    /// Runs the workflow that stores the file it is sent.
    pub fn store_file(&self, length: usize) -> Result<Write> {
        let nonce = crate::write::nonce();
        let bytes = Noise(rand::random()).bytes(length);
        let digest = sha256(&bytes);
        let part = multipart::Part::bytes(bytes).file_name("harness.bin");
        let form = multipart::Form::new()
            .text("nonce", nonce.clone())
            .part("file", part.mime_str("application/octet-stream")?);
        let path = format!("/webhook/{}", workflows::BINARY);
        let answer = self
            .0
            .send(&Method::POST, &path, |request| request.multipart(form))?;
        Ok(Write::Binary {
            execution: execution_id(&answer.json()?, &nonce)?,
            nonce,
            bytes: length as u64,
            sha256: digest,
        })
    }

    /// Runs the workflow whose request carries the credential; returns the value that arrived.
    pub fn call_with_credential(&self) -> Result<String> {
        let nonce = crate::write::nonce();
        let answer = self.webhook(workflows::CALL, &nonce)?;
        execution_id(&answer, &nonce)?;
        let key = answer.get("key").and_then(Value::as_str);
        Ok(key
            .context("the workflow's request carried no credential")?
            .to_owned())
    }

    /// Opens the credential; n8n has to decrypt it to show the header's name.
    pub fn credential_header(&self, id: &str) -> Result<String> {
        let answer = self
            .0
            .get(&format!("/rest/credentials/{id}?includeData=true"))?;
        let name = answer.pointer("/data/data/name").and_then(Value::as_str);
        Ok(name.unwrap_or("(not readable)").to_owned())
    }

    /// Tells whether a workflow is published.
    pub fn is_active(&self, workflow: &str) -> Result<bool> {
        let answer = self.0.get(&format!("/rest/workflows/{workflow}"))?;
        let version = answer.pointer("/data/activeVersionId");
        Ok(version.is_some_and(Value::is_string))
    }

    /// Lists every execution of the given workflows by its id.
    pub fn executions(&self, workflows: &[&str]) -> Result<HashMap<String, Execution>> {
        let mut found = HashMap::new();
        for workflow in workflows {
            let filter = format!("%7B%22workflowId%22%3A%22{workflow}%22%7D");
            let mut path = format!("/rest/executions?limit=100&filter={filter}");
            loop {
                let page = self.0.get(&path)?;
                let results = page.pointer("/data/results").and_then(Value::as_array);
                for execution in results.context("executions are missing in n8n's answer")? {
                    let text = |name| execution.get(name).and_then(Value::as_str);
                    found.insert(
                        text("id").context("an execution has no id")?.to_owned(),
                        Execution {
                            status: text("status").unwrap_or_default().to_owned(),
                            workflow: text("workflowId").unwrap_or_default().to_owned(),
                        },
                    );
                }
                let Some(cursor) = page.pointer("/data/nextCursor").and_then(Value::as_str) else {
                    break;
                };
                path = format!("/rest/executions?limit=100&filter={filter}&cursor={cursor}");
            }
        }
        Ok(found)
    }

    /// Reads an execution's data as n8n stores it: a flattened JSON text.
    pub fn execution_data(&self, id: &str) -> Result<String> {
        let answer = self.0.get(&format!("/rest/executions/{id}"))?;
        let data = answer.pointer("/data/data").and_then(Value::as_str);
        Ok(data
            .with_context(|| format!("execution {id} has no data"))?
            .to_owned())
    }

    /// Downloads the file an execution stored and returns its SHA-256.
    pub fn stored_file(&self, execution: &str) -> Result<String> {
        let data = self.execution_data(execution)?;
        let id = data
            .split('"')
            .find(|text| text.contains("/binary_data/"))
            .with_context(|| format!("execution {execution} refers to no stored file"))?;
        let path = format!("/rest/binary-data?action=download&id={id}");
        let answer = self.0.send(&Method::GET, &path, |request| request)?;
        Ok(sha256(&answer.body))
    }

    fn webhook(&self, path: &str, nonce: &str) -> Result<Value> {
        self.0
            .post(&format!("/webhook/{path}"), &json!({"nonce": nonce}))
    }

    fn create_credential(&self, secret: &str) -> Result<String> {
        let answer = self.0.post(
            "/rest/credentials",
            &json!({
                "name": "Harness header",
                "type": "httpHeaderAuth",
                "data": {"name": HEADER, "value": secret},
            }),
        )?;
        id_of(&answer).context("create a credential")
    }

    /// Creates a workflow and publishes the version that was created.
    fn create_workflow(&self, workflow: &Value) -> Result<String> {
        let created = self.0.post("/rest/workflows", workflow)?;
        let id = id_of(&created).context("create a workflow")?;
        let version = created.pointer("/data/versionId").and_then(Value::as_str);
        self.0.post(
            &format!("/rest/workflows/{id}/activate"),
            &json!({"versionId": version.context("a new workflow has no version")?}),
        )?;
        ensure!(self.is_active(&id)?, "n8n did not publish workflow {id}");
        Ok(id)
    }
}

/// Connects anew and asks whether n8n has its database and has run its migrations.
pub fn ping(stack: &Stack) -> Result<()> {
    let web = Web::unpooled(&base(stack)?, Duration::from_secs(5))?;
    web.send(&Method::GET, "/healthz/readiness", |request| request)?;
    Ok(())
}

/// Sets the owner up, makes credential and workflows, and runs each of them.
pub fn seed(stack: &Stack, binary_bytes: usize) -> Result<Seeded> {
    let mut seeded = Seeded {
        email: "owner@harness.example".to_owned(),
        password: format!("Harness1-{}", crate::write::nonce()),
        credential: String::new(),
        secret: crate::write::nonce(),
        workflows: HashMap::new(),
        executions: Vec::new(),
    };
    let mut n8n = N8n::new(stack, Duration::from_mins(1))?;
    n8n.0
        .post(
            "/rest/owner/setup",
            &json!({
                "email": seeded.email, "password": seeded.password,
                "firstName": "Harness", "lastName": "Owner",
            }),
        )
        .context("set n8n's owner up; seed a fresh stack")?;
    n8n.log_in(&seeded.email, &seeded.password)?;
    seeded.credential = n8n.create_credential(&seeded.secret)?;
    for (path, workflow) in workflows::all(&seeded.credential) {
        let id = n8n.create_workflow(&workflow)?;
        seeded.workflows.insert(path.to_owned(), id);
    }
    n8n.wait_for_webhook()?;
    for _ in 0..20 {
        seeded.executions.push(n8n.echo()?);
    }
    for _ in 0..5 {
        seeded.executions.push(n8n.store_file(binary_bytes)?);
    }
    let arrived = n8n.call_with_credential()?;
    ensure!(
        arrived == seeded.secret,
        "the workflow's request carried another value than the credential's"
    );
    Ok(seeded)
}

impl N8n {
    /// Waits until a published workflow's webhook is registered.
    pub fn wait_for_webhook(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            match self.echo() {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context("the echo workflow's webhook does not answer"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(250)),
            }
        }
    }
}

/// Reads the execution's id from a workflow's answer, which must give the nonce back.
fn execution_id(answer: &Value, nonce: &str) -> Result<String> {
    ensure!(
        answer.get("nonce").and_then(Value::as_str) == Some(nonce),
        "a workflow did not give back the nonce it was sent: {answer}"
    );
    let id = answer.get("execution").and_then(Value::as_str);
    Ok(id
        .with_context(|| format!("a workflow did not name its execution: {answer}"))?
        .to_owned())
}

fn id_of(answer: &Value) -> Result<String> {
    let id = answer.pointer("/data/id").and_then(Value::as_str);
    Ok(id
        .with_context(|| format!("n8n's answer has no id: {answer}"))?
        .to_owned())
}

fn base(stack: &Stack) -> Result<String> {
    Ok(stack.container(Service::N8n)?.url())
}
