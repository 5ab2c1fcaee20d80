//! The shortest way through the whole store, on every backend.
use alluvium::backends::sim::Sim;
use alluvium::format::Batch;
use alluvium::{BackendKind, ReadLimits, Store, Visibility};
use std::time::Duration;

async fn round(store: &Store, n: u32) {
    let p = store.partition_or_create(7).await.unwrap();
    let start = p.offsets().log_end();
    for i in 0..n {
        let a = p
            .append(Batch::from_values([format!("record {i}")]).unwrap())
            .await
            .unwrap();
        assert_eq!(a.base_offset, start + u64::from(i));
    }
    let mut at = start;
    let mut seen = 0;
    while seen < n {
        let f = p
            .read(at, ReadLimits::default(), Visibility::Durable)
            .await
            .unwrap();
        assert!(!f.is_empty(), "{seen} {:?}", p.offsets());
        for r in f.records() {
            assert_eq!(&r.unwrap().value[..], format!("record {seen}").as_bytes());
            seen += 1;
        }
        at = f.next_offset;
    }
}

#[test]
fn sim() {
    let sim = Sim::from_seed(1);
    sim.create_dir_all("/store").unwrap();
    for i in 0..3 {
        let f = sim.new_process();
        sim.block_on(async {
            let (store, report) = Store::builder("/store")
                .configure(|c| {
                    c.segment_bytes = 16 << 10;
                    c.group_bytes_max = 4096;
                    c.group_bytes_min = 4096;
                })
                .backend(f)
                .open()
                .await
                .unwrap();
            eprintln!("{report}");
            round(&store, 100).await;
            if i != 1 {
                store.close(Duration::from_secs(1)).await.unwrap();
            }
        });
        sim.power_loss();
    }
}

fn real(kind: BackendKind) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let rt = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    for _ in 0..2 {
        rt.block_on(async {
            let (store, report) = Store::builder(dir.path())
                .configure(|c| c.segment_bytes = 1 << 20)
                .backend(kind)
                .open()
                .await
                .unwrap();
            eprintln!("{report} {:?}", store.info());
            let t = std::time::Instant::now();
            round(&store, 2000).await;
            eprintln!("{kind} {:?}", t.elapsed());
            store.close(Duration::from_secs(1)).await.unwrap();
        });
    }
}
#[test]
fn tokio_backend() {
    real(BackendKind::Tokio)
}
#[test]
fn compio_backend() {
    real(BackendKind::Compio)
}
