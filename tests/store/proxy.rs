//! A proxy between the store and the real server, which does to each request what the test says.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What the proxy saw of a request.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub head: String,
    pub body_bytes: usize,
}

impl Seen {
    pub fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.target.contains(part)
    }

    pub fn has(&self, header: &str) -> bool {
        self.head
            .to_ascii_lowercase()
            .contains(&format!("\r\n{header}:"))
    }
}

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Action {
    Pass,
    /// Answered here; the server never hears of it.
    Answer(u16, &'static str),
    /// A whole answer, head and body, that was recorded before.
    Replay(Arc<Vec<u8>>),
    /// The connection is reset in the middle of the request's body.
    ResetRequest,
    /// The server does it; its answer is lost whole.
    LoseAnswer,
    /// The server does it; its answer ends in a reset after so many bytes of its body.
    ResetAnswer(usize),
    /// The same with an orderly end of the connection.
    CutAnswer(usize),
    /// The server does it, and an error is told.
    DoneBut(u16),
    /// The answer comes in pieces of so many bytes, one each period.
    Trickle(usize, Duration),
    /// No answer at all.
    Silence,
    /// Waits for the word, then passes.
    Hold(Arc<tokio::sync::Semaphore>),
}

type Judge = dyn Fn(&Seen) -> Action + Send + Sync;

pub struct Proxy {
    pub address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
    answers: mpsc::Receiver<(Seen, Vec<u8>)>,
}

impl Proxy {
    /// Listens on a free port, in front of the server at `upstream`.
    pub fn start(
        upstream: SocketAddr,
        judge: impl Fn(&Seen) -> Action + Send + Sync + 'static,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let judge: Arc<Judge> = Arc::new(judge);
        let (sender, answers) = mpsc::channel();
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (judge, sender) = (Arc::clone(&judge), sender.clone());
                tokio::spawn(async move {
                    // A client that went away is no fault of the proxy's.
                    serve(client, upstream, &*judge, &sender).await.ok();
                });
            }
        });
        Self {
            address,
            runtime: Some(runtime),
            answers,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The server's answers so far, with what they answer.
    pub fn recorded(&self) -> Vec<(Seen, Vec<u8>)> {
        self.answers.try_iter().collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One request a connection.
async fn serve(
    mut client: TcpStream,
    upstream: SocketAddr,
    judge: &Judge,
    answers: &mpsc::Sender<(Seen, Vec<u8>)>,
) -> io::Result<()> {
    let mut received = Vec::new();
    let head_end = loop {
        if let Some(at) = received.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if client.read_buf(&mut received).await? == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(&received[..head_end]).into_owned();
    let mut words = head.split(' ');
    let body_bytes = head
        .lines()
        .find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse().ok())?
        })
        .unwrap_or(0);
    let seen = Seen {
        method: words.next().unwrap_or_default().to_owned(),
        target: words.next().unwrap_or_default().to_owned(),
        body_bytes,
        head,
    };
    let whole = head_end + 4 + body_bytes;
    let action = judge(&seen);
    if matches!(action, Action::ResetRequest) {
        let half = head_end + 4 + body_bytes / 2;
        read_to(&mut client, &mut received, half).await?;
        return client.set_zero_linger();
    }
    read_to(&mut client, &mut received, whole).await?;
    let answer = match &action {
        Action::Answer(status, body) => {
            format!(
                "HTTP/1.1 {status} So\r\nContent-Length: {}\r\nETag: \"0\"\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
            .into_bytes()
        }
        Action::Replay(answer) => answer.to_vec(),
        Action::Silence => {
            // Until the client gives up.
            client.read_buf(&mut received).await?;
            return Ok(());
        }
        _ => {
            if let Action::Hold(gate) = &action {
                gate.acquire().await.map_err(io::Error::other)?.forget();
            }
            forward(upstream, &received, head_end).await?
        }
    };
    answers.send((seen, answer.clone())).ok();
    let body_at = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map_or(answer.len(), |at| at + 4);
    match action {
        Action::LoseAnswer => client.set_zero_linger(),
        Action::ResetAnswer(bytes) => {
            client
                .write_all(&answer[..answer.len().min(body_at + bytes)])
                .await?;
            client.flush().await?;
            client.set_zero_linger()
        }
        Action::CutAnswer(bytes) => {
            client
                .write_all(&answer[..answer.len().min(body_at + bytes)])
                .await?;
            client.shutdown().await
        }
        Action::DoneBut(status) => {
            let told =
                format!("HTTP/1.1 {status} So\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            client.write_all(told.as_bytes()).await?;
            client.shutdown().await
        }
        Action::Trickle(bytes, period) => {
            client.write_all(&answer[..body_at]).await?;
            let mut beat = tokio::time::interval(period);
            for piece in answer[body_at..].chunks(bytes) {
                beat.tick().await;
                client.write_all(piece).await?;
                client.flush().await?;
            }
            client.shutdown().await
        }
        _ => {
            client.write_all(&answer).await?;
            client.shutdown().await
        }
    }
}

async fn read_to(client: &mut TcpStream, received: &mut Vec<u8>, length: usize) -> io::Result<()> {
    while received.len() < length {
        if client.read_buf(received).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// The server's whole answer.
async fn forward(upstream: SocketAddr, request: &[u8], head_end: usize) -> io::Result<Vec<u8>> {
    let mut server = TcpStream::connect(upstream).await?;
    server.write_all(&request[..head_end]).await?;
    // No part of the signature: only some headers are.
    server.write_all(b"\r\nConnection: close").await?;
    let (mut reading, mut writing) = server.split();
    let mut answer = Vec::new();
    // A server that refuses answers before it has the body, and then resets the connection.
    let (sent, read) = tokio::join!(
        writing.write_all(&request[head_end..]),
        reading.read_to_end(&mut answer)
    );
    if answer.windows(4).any(|w| w == b"\r\n\r\n") {
        return Ok(answer);
    }
    sent?;
    read?;
    Err(io::ErrorKind::UnexpectedEof.into())
}
