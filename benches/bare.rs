//! Clients of librdkafka as anybody would set them up who wants what we want.

use rdkafka::config::ClientConfig;

/// A producer that loses and doubles nothing.
pub fn producer(address: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", address)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "lz4")
        .set("linger.ms", "1")
        .set("batch.num.messages", "10000")
        .set("queue.buffering.max.messages", "0");
    config
}

/// A consumer that says where partitions end and does not wait to fetch more.
pub fn consumer(address: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", address)
        .set("group.id", "bench")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("fetch.queue.backoff.ms", "2");
    config
}
