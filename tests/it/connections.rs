//! Connections of callers who do not say what they want.

use std::time::{Duration, Instant};

use http::Method;
use sendtrail::client::Api;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::binary::{ADMIN_KEY, Process, account_with_key};
use super::support::*;

/// What HTTP/2 begins with, and that nothing is to be set.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A request by HTTP/2 of one who takes not a byte of the answer.
fn untaken() -> Vec<u8> {
    let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS: INITIAL_WINDOW_SIZE is 0 (RFC 9113, 6.5.2).
    said.extend(b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0");
    // HEADERS that end the stream and the block, of stream 1: GET, http, /health, x (RFC 7541, 6.1 and 6.2.2).
    let block = b"\x82\x86\x04\x07/health\x01\x01x";
    said.extend([0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1]);
    said.extend(block);
    said
}

/// A server that has room for three, who must say what they want, and take what they are told, in so many milliseconds.
fn start(folder: &tempfile::TempDir, header_timeout_ms: &str, body_timeout_ms: &str) -> Process {
    let settings = [
        ("SENDTRAIL_ADMIN_KEY", ADMIN_KEY),
        ("SENDTRAIL__SERVER__MAX_CONNECTIONS", "3"),
        ("SENDTRAIL__SERVER__HEADER_TIMEOUT_MS", header_timeout_ms),
        ("SENDTRAIL__SERVER__BODY_TIMEOUT_MS", body_timeout_ms),
        ("SENDTRAIL__SERVER__SHUTDOWN_GRACE_SECONDS", "1"),
    ];
    Process::start(folder.path(), &settings)
}

async fn three(process: &Process, said: &[u8]) -> Vec<TcpStream> {
    let address = process.base.strip_prefix("http://").unwrap();
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(said).await.unwrap();
        streams.push(stream);
    }
    streams
}

#[tokio::test]
async fn who_asks_nothing_keeps_nobody_out() {
    let folder = tempfile::TempDir::new().unwrap();
    let process = start(&folder, "300", "300");
    let request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    let untaken = untaken();
    // Silent, within the first word, of HTTP/2 without a request, kept after an answer, within a request, and without room for the
    // answer.
    for said in [b"", &PREFACE[..9], PREFACE, request, &request[..20], &untaken] {
        let silent = three(&process, said).await;
        let api = Api::new(&process.base, "");
        // Whoever is too slow to ask, as the machine may be, asks again.
        eventually("somebody is heard", async || {
            let asked = api.call(Method::GET, "/health", &[("connection", "close")], "");
            let reply = tokio::time::timeout(Duration::from_secs(60), asked).await.expect("nobody is kept out");
            reply.is_ok_and(|reply| reply.status == 200)
        })
        .await;
        for mut stream in silent {
            let mut rest = Vec::new();
            // An end or a reset, after what was answered.
            let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut rest)).await;
            ended.expect("it is not kept").ok();
        }
    }
}

/// Asks by one connection, far longer than it may be silent; whether that could be done without a silence of our own.
async fn asks_for_four_seconds(address: &str) -> bool {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let begun = Instant::now();
    let (mut asked, mut answers) = (begun, 0);
    while begun.elapsed() < Duration::from_secs(4) {
        let written = stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let is_silent = asked.elapsed() > Duration::from_millis(900);
        asked = Instant::now();
        let (mut told, mut part) = (Vec::new(), [0; 4096]);
        while !told.ends_with(b"}") {
            let read = if written.is_ok() { stream.read(&mut part).await.unwrap_or(0) } else { 0 };
            if read == 0 {
                assert!(is_silent, "it was closed after {answers} answers");
                return false;
            }
            told.extend_from_slice(&part[..read]);
        }
        assert!(told.starts_with(b"HTTP/1.1 200"));
        answers += 1;
    }
    true
}

#[tokio::test]
async fn who_asks_again_and_again_or_reads_slowly_is_not_cut_short() {
    let folder = tempfile::TempDir::new().unwrap();
    let process = start(&folder, "1000", "30000");
    let address = process.base.strip_prefix("http://").unwrap();
    eventually("a machine that does not stall meanwhile", async || asks_for_four_seconds(address).await).await;
    // One answer, read piece by piece.
    let (api, _) = account_with_key(&Api::new(&process.base, ADMIN_KEY)).await;
    let line = |n: usize| {
        let mut told = event("Send", &format!("m-{n}"));
        told["subject"] = "x".repeat(900).into();
        told["metadata"] = json!({"note": "y".repeat(3_000)});
        format!("{told}\n")
    };
    assert_eq!(super::support::stream(&api, (0..1_000).map(line).collect()).await["accepted"], 1_000);
    eventually("all are shown", async || {
        api.get(&format!("{PARTNER}/stats")).await.unwrap()["totals"]["sends"] == 1_000
    })
    .await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // So that the server holds most of it.
    socket.set_recv_buffer_size(32 << 10).unwrap();
    let mut slow = socket.connect(address.parse().unwrap()).await.unwrap();
    let request = format!(
        "GET {PARTNER}/events?limit=1000 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
        api.key()
    );
    slow.write_all(request.as_bytes()).await.unwrap();
    let (mut told, mut part) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let read = slow.read(&mut part).await.unwrap();
        if read == 0 {
            break;
        }
        told.extend_from_slice(&part[..read]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let text = String::from_utf8(told).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    assert_eq!(length, Some(body.len()), "cut short");
    assert!(body.len() > 4_000_000, "{}", body.len());
}

#[tokio::test]
async fn a_server_that_has_no_room_stops_all_the_same() {
    let folder = tempfile::TempDir::new().unwrap();
    let mut process = start(&folder, "3600000", "3600000");
    let held = three(&process, b"").await;
    process.signal("-TERM");
    eventually("it ends", async || process.has_ended()).await;
    drop(held);
}
