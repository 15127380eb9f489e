//! A small proxy before the engine's socket, as people put one before it.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;

/// What a denied request gets.
#[derive(Clone)]
enum Denial {
    /// The page HAProxy sends, which the usual socket proxies are made of.
    Refuse,
    Hang,
    /// Not a denial: every request gets this body, and the engine none.
    Answer(&'static str),
}

/// Listens until dropped.
pub struct Proxy {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Refuses requests whose method is one of these or whose path begins so; a version prefix does not count.
    pub async fn refusing(denied: &'static [&'static str]) -> Self {
        Self::listen(denied, Denial::Refuse).await
    }

    pub async fn hanging(denied: &'static [&'static str]) -> Self {
        Self::listen(denied, Denial::Hang).await
    }

    pub async fn answering(body: &'static str) -> Self {
        Self::listen(&["/"], Denial::Answer(body)).await
    }

    pub fn host(&self) -> String {
        format!("tcp://{}", self.address)
    }

    async fn listen(denied: &'static [&'static str], denial: Denial) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let denial = Arc::new(denial);
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(client, denied, Arc::clone(&denial)));
            }
        });
        Self { address, task }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves one connection, which is one request: the client keeps none open.
async fn serve(mut client: TcpStream, denied: &[&str], denial: Arc<Denial>) {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if client.read_buf(&mut head).await.unwrap() == 0 {
            return;
        }
    }
    let line = String::from_utf8_lossy(&head);
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let path = match path.strip_prefix("/v1.").and_then(|p| p.find('/')) {
        Some(at) => &path[at + 4..],
        None => path,
    };
    let is_denied = denied
        .iter()
        .any(|d| *d == method || (d.starts_with('/') && path.starts_with(d)));
    match (&*denial, is_denied) {
        (_, false) => forward(client, &head).await,
        (Denial::Hang, true) => {
            // Until the client gives up.
            while client.read_buf(&mut head).await.is_ok_and(|n| n > 0) {}
        }
        (Denial::Refuse, true) => {
            let page = "<html><body><h1>403 Forbidden</h1>\nRequest forbidden by administrative rules.\n</body></html>\n";
            answer(&mut client, "403 Forbidden", page).await;
        }
        (Denial::Answer(body), true) => answer(&mut client, "200 OK", body).await,
    }
}

async fn forward(mut client: TcpStream, head: &[u8]) {
    let host = super::docker_host();
    let mut engine = UnixStream::connect(host.trim_start_matches("unix://"))
        .await
        .unwrap();
    engine.write_all(head).await.unwrap();
    // Ends with an error when one side resets, which is its business.
    copy_bidirectional(&mut client, &mut engine).await.ok();
}

async fn answer(client: &mut TcpStream, status: &str, body: &str) {
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    client.write_all(text.as_bytes()).await.unwrap();
}
