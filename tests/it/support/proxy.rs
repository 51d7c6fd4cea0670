//! A connection to a server that can be cut, and that can lose answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// What becomes of connections.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Line {
    /// They work.
    Up = 0,
    /// They end as soon as they are made, and so do those that were there.
    Down = 1,
    /// What is asked arrives and is done, but the answer does not come back.
    Mute = 2,
    /// What is asked never arrives, and nobody says so.
    Silent = 3,
}

pub struct Proxy {
    pub address: String,
    line: Arc<AtomicU8>,
    task: AbortHandle,
}

impl Proxy {
    pub async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (line, server) = (Arc::new(AtomicU8::new(0)), server.to_owned());
        let is = line.clone();
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if is.load(Ordering::SeqCst) != Line::Down as u8 {
                    open.spawn(pass(client, server.clone(), is.clone()));
                }
                while open.try_join_next().is_some() {}
            }
        });
        Self { address, line, task: task.abort_handle() }
    }

    pub fn set(&self, line: Line) {
        self.line.store(line as u8, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut client: TcpStream, server: String, line: Arc<AtomicU8>) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let (mut from_client, mut from_server) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let passed = tokio::select! {
            read = client.read(&mut from_client) => match read {
                Ok(1..) if line.load(Ordering::SeqCst) == Line::Silent as u8 => Ok(()),
                Ok(count @ 1..) => server.write_all(&from_client[..count]).await,
                _ => return,
            },
            read = server.read(&mut from_server) => match read {
                // An answer that is lost ends the connection: whoever asked learns that nobody knows.
                Ok(count @ 1..) if line.load(Ordering::SeqCst) == Line::Up as u8 => {
                    client.write_all(&from_server[..count]).await
                }
                _ => return,
            },
        };
        if passed.is_err() || line.load(Ordering::SeqCst) == Line::Down as u8 {
            return;
        }
    }
}
