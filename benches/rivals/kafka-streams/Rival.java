import com.google.protobuf.CodedInputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

/**
 * What Kafka Streams does with the same intake: 336 hourly buckets of three counts for each account, exactly once. Asked for
 * more ("whole") it also passes over copies and writes an event of each record to a topic.
 */
public final class Rival {
    private static final int BUCKETS = 336;
    private static final int COUNTS = 3;
    private static final AtomicLong SEEN = new AtomicLong();
    private static volatile long begun;

    /** The fields of an intake record that are counted by. */
    private static final class Fact {
        byte[] account;
        int kind;
        String message;
        String recipient;

        static Fact read(byte[] bytes) throws IOException {
            Fact fact = new Fact();
            // See schemas/src/record.rs.
            CodedInputStream in = CodedInputStream.newInstance(bytes);
            for (int tag = in.readTag(); tag != 0; tag = in.readTag()) {
                switch (tag >>> 3) {
                    case 2 -> fact.account = in.readByteArray();
                    case 10 -> {
                        int limit = in.pushLimit(in.readRawVarint32());
                        for (int of = in.readTag(); of != 0; of = in.readTag()) {
                            switch (of >>> 3) {
                                case 1 -> fact.kind = in.readEnum();
                                case 2 -> fact.message = in.readString();
                                case 3 -> fact.recipient = in.readString();
                                default -> in.skipField(of);
                            }
                        }
                        in.popLimit(limit);
                    }
                    default -> in.skipField(tag);
                }
            }
            return fact.kind == 0 ? null : fact;
        }
    }

    private static final class Windows implements Processor<byte[], byte[], byte[], byte[]> {
        private final boolean whole;
        private ProcessorContext<byte[], byte[]> context;
        private KeyValueStore<byte[], byte[]> windows;
        private KeyValueStore<byte[], byte[]> seen;

        Windows(boolean whole) {
            this.whole = whole;
        }

        @Override
        public void init(ProcessorContext<byte[], byte[]> context) {
            this.context = context;
            this.windows = context.getStateStore("windows");
            this.seen = whole ? context.getStateStore("seen") : null;
        }

        /** Whether the fact was seen before; notes it otherwise. */
        private boolean isCopy(Fact fact) {
            byte[] name = (fact.kind + "/" + fact.message + "/" + fact.recipient).getBytes(StandardCharsets.UTF_8);
            byte[] key = ByteBuffer.allocate(fact.account.length + name.length).put(fact.account).put(name).array();
            return seen.putIfAbsent(key, new byte[] {1}) != null;
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            Fact fact;
            try {
                fact = Fact.read(record.value());
            } catch (IOException e) {
                throw new IllegalStateException(e);
            }
            if (fact == null) {
                return;
            }
            if (begun == 0) {
                begun = System.nanoTime();
            }
            if (whole && isCopy(fact)) {
                return;
            }
            byte[] kept = windows.get(fact.account);
            ByteBuffer window = ByteBuffer.wrap(kept == null ? new byte[BUCKETS * COUNTS * 8] : kept);
            int bucket = (int) (record.timestamp() / 3_600_000 % BUCKETS);
            int at = (bucket * COUNTS + fact.kind % COUNTS) * 8;
            window.putLong(at, window.getLong(at) + 1);
            windows.put(fact.account, window.array());
            if (whole) {
                context.forward(record);
            }
            SEEN.incrementAndGet();
        }
    }

    public static void main(String[] arguments) throws Exception {
        String broker = arguments[0];
        String topic = arguments[1];
        long count = Long.parseLong(arguments[2]);
        int threads = Integer.parseInt(arguments[3]);
        boolean whole = arguments.length > 4;
        Properties properties = new Properties();
        properties.put(StreamsConfig.APPLICATION_ID_CONFIG, "rival-" + ProcessHandle.current().pid());
        properties.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, broker);
        properties.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        properties.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, threads);
        properties.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        properties.put(StreamsConfig.STATE_DIR_CONFIG, Files.createTempDirectory("rival").toString());
        properties.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        properties.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 10_000);
        properties.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.ByteArraySerde.class);
        properties.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.ByteArraySerde.class);
        Topology topology = new Topology();
        topology.addSource("intake", topic);
        topology.addProcessor("windows", () -> new Windows(whole), "intake");
        if (whole) {
            String events = topic + "-rival-" + ProcessHandle.current().pid();
            try (Admin admin = Admin.create(Map.of("bootstrap.servers", broker))) {
                int partitions = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions().size();
                admin.createTopics(List.of(new NewTopic(events, partitions, (short) 1))).all().get();
            }
            topology.addSink("events", events, "windows");
            topology.addStateStore(
                Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore("seen"), Serdes.ByteArray(), Serdes.ByteArray())
                    .withCachingEnabled(),
                "windows");
        }
        topology.addStateStore(
            Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore("windows"), Serdes.ByteArray(), Serdes.ByteArray())
                .withCachingEnabled(),
            "windows");
        CountDownLatch failed = new CountDownLatch(1);
        try (KafkaStreams streams = new KafkaStreams(topology, properties)) {
            streams.setUncaughtExceptionHandler(cause -> {
                cause.printStackTrace();
                failed.countDown();
                return org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse
                    .SHUTDOWN_CLIENT;
            });
            streams.start();
            while (SEEN.get() < count) {
                if (failed.await(5, java.util.concurrent.TimeUnit.MILLISECONDS)) {
                    System.exit(1);
                }
            }
            System.out.printf("%.0f%n", count / ((System.nanoTime() - begun) / 1e9));
            streams.close(Duration.ofSeconds(10));
        }
        System.exit(0);
    }
}
