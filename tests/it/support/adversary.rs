//! Receivers of the worst kind, byte by byte; and a DNS server that says what a test tells it to.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// How a receiver behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Manner {
    /// Takes the post and never says a word.
    Hang,
    /// Says a letter of its head now and then.
    DripHead,
    /// Says 200, and then its body a letter at a time, for ever.
    DripBody,
    /// Breaks the connection once it has the post.
    Reset,
    /// Says 500 and a hundred megabytes.
    Huge,
    /// Says 200 and a hundred megabytes.
    HugeOk,
    /// Speaks something that is not HTTP.
    Garbage,
    /// Ends in the middle of its head.
    Half,
    /// Accepts a connection only after seconds.
    SlowAccept,
}

pub const MANNERS: [Manner; 9] = [
    Manner::Hang,
    Manner::DripHead,
    Manner::DripBody,
    Manner::Reset,
    Manner::Huge,
    Manner::HugeOk,
    Manner::Garbage,
    Manner::Half,
    Manner::SlowAccept,
];

/// A receiver of one manner. Ends with its test's runtime.
pub struct Adversary {
    pub base: String,
}

impl Adversary {
    pub async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            if manner == Manner::SlowAccept {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // What the other side does is its own affair.
                tokio::spawn(async move { drop(behave(manner, stream).await) });
            }
        });
        Self { base }
    }
}

async fn behave(manner: Manner, mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = vec![0; 64 << 10];
    if stream.read(&mut request).await? == 0 {
        return Ok(());
    }
    let drip = async |stream: &mut TcpStream, text: &str| {
        for byte in text.bytes() {
            stream.write_all(&[byte]).await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok::<_, std::io::Error>(())
    };
    match manner {
        Manner::Hang => tokio::time::sleep(Duration::from_secs(3_600)).await,
        Manner::DripHead => drip(&mut stream, &format!("HTTP/1.1 200 OK\r\nx-long: {}", "a".repeat(10_000))).await?,
        Manner::DripBody => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await?;
            drip(&mut stream, &"b".repeat(10_000)).await?;
        }
        Manner::Reset => stream.set_zero_linger()?,
        Manner::Huge | Manner::HugeOk => {
            let status = if manner == Manner::Huge { "500 Oh No" } else { "200 OK" };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: 104857600\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            for _ in 0..1_600 {
                stream.write_all(&[b'x'; 65_536]).await?;
            }
        }
        Manner::Garbage => stream.write_all(b"220 mail.example ESMTP\r\n").await?,
        Manner::Half => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-le").await?,
        Manner::SlowAccept => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?,
    }
    Ok(())
}

/// An authority, and a receiver on TLS with a certificate of its making.
pub struct Tls {
    pub authority_pem: String,
    authority: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Tls {
    pub fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
        Self { authority_pem: authority.pem(), authority }
    }

    /// A receiver that says 200 to everything, by a certificate for a name that ends at a time; its port.
    pub async fn receiver(&self, name: &str, expired: bool) -> u16 {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        if expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut request = vec![0; 64 << 10];
                    if stream.read(&mut request).await.is_ok() {
                        let _ = stream
                            .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                            .await;
                        let _ = stream.shutdown().await;
                    }
                });
            }
        });
        port
    }
}

/// Answers of a name, one list a question; the last one is given again and again.
pub type Answers = HashMap<&'static str, Vec<Vec<Ipv4Addr>>>;

/// A DNS server (RFC 1035 §4) of A records without any time to live.
pub struct Dns {
    pub address: SocketAddr,
    /// How often each name was asked for.
    pub asked: Arc<Mutex<HashMap<String, usize>>>,
}

impl Dns {
    pub async fn start(answers: Answers) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let asked: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let counted = asked.clone();
        tokio::spawn(async move {
            let mut packet = [0u8; 1_500];
            loop {
                let (length, from) = socket.recv_from(&mut packet).await.unwrap();
                let reply = answer(&packet[..length], &answers, &counted);
                socket.send_to(&reply, from).await.unwrap();
            }
        });
        Self { address, asked }
    }
}

fn answer(question: &[u8], answers: &Answers, asked: &Mutex<HashMap<String, usize>>) -> Vec<u8> {
    let mut labels = Vec::new();
    let mut at = 12;
    while question[at] != 0 {
        let length = usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..at + 1 + length]).to_lowercase());
        at += 1 + length;
    }
    let (name, kind, end) = (labels.join("."), question[at + 2], at + 5);
    let known = answers.get(name.as_str());
    let addresses = match known {
        // Of type A.
        Some(lists) if kind == 1 => {
            let mut asked = asked.lock();
            let count = asked.entry(name).or_default();
            *count += 1;
            lists[(*count - 1).min(lists.len() - 1)].clone()
        }
        _ => Vec::new(),
    };
    let mut reply = question[..2].to_vec();
    // An answer, recursion available; or: no such name.
    reply.extend([0x81, if known.is_some() { 0x80 } else { 0x83 }, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    reply.extend(&question[12..end]);
    for address in addresses {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend(address.octets());
    }
    reply
}

/// A listener that answers 200 to everything on an address, each connection once; how many came.
pub async fn plain(address: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    let listener = socket.listen(64).unwrap();
    let (address, came): (_, Arc<AtomicUsize>) = (listener.local_addr().unwrap(), Arc::default());
    let counted = came.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            let mut request = vec![0; 64 << 10];
            if stream.read(&mut request).await.is_ok() {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
            }
        }
    });
    (address, came)
}

/// A proxy that connects to wherever it is asked to; where that was.
pub async fn proxy() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked): (_, Arc<Mutex<Vec<String>>>) = (listener.local_addr().unwrap(), Arc::default());
    let kept = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let kept = kept.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let to = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
                kept.lock().push(to.to_owned());
                let mut onward = TcpStream::connect(to).await?;
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                tokio::io::copy_bidirectional(&mut stream, &mut onward).await
            });
        }
    });
    (address, asked)
}
