//! Inspecting a log: under appends, after a truncation, around damage; and cutting by order.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use alluvium::format::Batch;
use alluvium::{
    BackendKind, InspectDetail, InspectRequest, Inspection, OnCorruption, Partition, Store,
    TailCase,
};

const CLOSE: Duration = Duration::from_secs(10);

async fn open(dir: &Path, on_corruption: OnCorruption) -> alluvium::Result<Store> {
    let builder = Store::builder(dir).configure(|c| {
        c.segment_bytes = 16 << 10;
        c.group_bytes_max = 8192;
        c.group_bytes_min = 4096;
        c.on_corruption = on_corruption;
    });
    Ok(builder.backend(BackendKind::Tokio).open().await?.0)
}

async fn fill(partition: &Partition, batches: u32) {
    for n in 0..batches {
        let values = (0..5).map(|i| format!("record {n}.{i} {}", "x".repeat(40)));
        partition
            .append(Batch::from_values(values).unwrap())
            .await
            .unwrap();
    }
}

async fn inspect(partition: &Partition) -> Inspection {
    let request = InspectRequest {
        detail: InspectDetail::Batches,
        ..InspectRequest::default()
    };
    partition.inspect(request).await.unwrap()
}

fn damaged_places(inspection: &Inspection) -> usize {
    inspection.segments.iter().map(|s| s.damage.len()).sum()
}

fn records(inspection: &Inspection) -> u64 {
    inspection.segments.iter().map(|s| s.record_count).sum()
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn flip(path: &Path, position: u64) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[byte[0] ^ 1], position).unwrap();
}

#[tokio::test]
async fn what_is_being_written_is_not_damage() {
    let dir = scratch();
    let store = open(dir.path(), OnCorruption::Refuse).await.unwrap();
    let partition = store.create_partition(1).await.unwrap();
    let appending = tokio::spawn({
        let partition = partition.clone();
        async move {
            let appends = (0..8).map(|_| fill(&partition, 100));
            futures_util::future::join_all(appends).await;
        }
    });
    while !appending.is_finished() {
        let found = inspect(&partition).await;
        assert_eq!(damaged_places(&found), 0, "{found:?}");
        tokio::task::yield_now().await;
    }
    assert_eq!(records(&inspect(&partition).await), 4000);
    store.close(CLOSE).await.unwrap();
}

#[tokio::test]
async fn segments_come_in_pages() {
    let dir = scratch();
    let store = open(dir.path(), OnCorruption::Refuse).await.unwrap();
    let partition = store.create_partition(1).await.unwrap();
    fill(&partition, 100).await;
    let whole = inspect(&partition).await;
    assert!(whole.segments.len() > 2);
    let (mut from, mut pages) = (Some(0), Vec::new());
    while let Some(from_sequence) = from {
        let detail = InspectDetail::Batches;
        let request = InspectRequest {
            from_sequence,
            segments_max: 1,
            detail,
        };
        let page = partition.inspect(request).await.unwrap();
        pages.extend(page.segments);
        from = page.next_sequence;
    }
    assert_eq!(pages, whole.segments);
    store.close(CLOSE).await.unwrap();
}

#[tokio::test]
async fn what_a_truncation_cut_is_not_looked_at_any_more() {
    for to in [0, 1, 5, 203, 205, 499] {
        let dir = scratch();
        let store = open(dir.path(), OnCorruption::Refuse).await.unwrap();
        let partition = store.create_partition(1).await.unwrap();
        fill(&partition, 100).await;
        partition.truncate_to(to).await.unwrap();
        let found = inspect(&partition).await;
        assert_eq!((records(&found), damaged_places(&found)), (to, 0));
        store.close(CLOSE).await.unwrap();

        let store = open(dir.path(), OnCorruption::Refuse).await.unwrap();
        let partition = store.partition(1).await.unwrap();
        assert_eq!(partition.offsets().log_end(), to);
        let found = inspect(&partition).await;
        assert_eq!((records(&found), damaged_places(&found)), (to, 0));
        let last = found.segments.iter().rev().find(|s| s.record_count > 0);
        if let Some(batch) = last.and_then(|s| s.batches.iter().rfind(|b| b.control.is_none())) {
            assert!(
                batch.header.base_offset < to,
                "whole batches behind the cut are out of it"
            );
        }
        store.close(CLOSE).await.unwrap();
    }
}

#[tokio::test]
async fn only_the_partition_named_is_cut() {
    let dir = scratch();
    let store = open(dir.path(), OnCorruption::Refuse).await.unwrap();
    let mut places = Vec::new();
    for id in [1, 2] {
        let partition = store.create_partition(id).await.unwrap();
        fill(&partition, 10).await;
        let segment = inspect(&partition).await.segments.pop().unwrap();
        let batch = segment
            .batches
            .iter()
            .find(|b| b.header.base_offset == 20)
            .unwrap();
        places.push((segment.path, batch.position + 100));
    }
    store.close(CLOSE).await.unwrap();
    for (path, position) in &places {
        flip(path, *position);
    }
    assert!(open(dir.path(), OnCorruption::Refuse).await.is_err());

    let store = open(dir.path(), OnCorruption::CutTail { partition: 2 })
        .await
        .unwrap();
    let (one, two) = (
        store.partition(1).await.unwrap(),
        store.partition(2).await.unwrap(),
    );
    let (told_one, told_two) = (one.describe().await.unwrap(), two.describe().await.unwrap());
    assert!(told_one.read_only && told_one.recovery.corruption.is_some());
    assert_eq!(one.offsets().log_end(), 50);
    assert!(!told_two.read_only && told_two.recovery.corruption.is_none());
    assert_eq!(told_two.recovery.case, TailCase::Corrupt);
    assert_eq!(
        told_two.recovery.cut,
        Some((places[1].0.clone(), places[1].1 - 100))
    );
    assert_eq!(two.offsets().log_end(), 20);
    assert_eq!(damaged_places(&inspect(&one).await), 1);
    assert_eq!(damaged_places(&inspect(&two).await), 0);
    fill(&two, 1).await;
    store.close(CLOSE).await.unwrap();

    let store = open(dir.path(), OnCorruption::Salvage).await.unwrap();
    assert_eq!(
        records(&inspect(&store.partition(2).await.unwrap()).await),
        25
    );
    store.close(CLOSE).await.unwrap();
}
