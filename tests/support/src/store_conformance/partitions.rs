//! Partitions: creation, deletion, many of them, shards.

use alluvium_core::{Error, ErrorClass, Partition, ReadLimits, Shards, Visibility};

use super::{Ctx, Host, Suite, batch, checks, close, fill, verify};

pub(super) fn all<H: Host + Clone + 'static>(suite: &mut Suite<'_, H>) {
    checks!(suite;
        partitions_are_created_listed_and_described,
        a_deleted_partition_is_gone_and_its_successor_is_new,
        creation_and_deletion_at_once,
        sixty_four_partitions,
        the_number_of_shards_may_change,
    );
}

async fn partitions_are_created_listed_and_described<H: Host>(ctx: Ctx<H>) {
    let store = ctx.open().await;
    assert_eq!(store.list_partitions().await.unwrap(), []);
    let ids = [0, 7, 8, 1 << 33, u64::MAX];
    for id in ids.iter().rev() {
        let p = store.create_partition(*id).await.unwrap();
        assert_eq!((p.id(), p.offsets().log_end()), (*id, 0));
    }
    let e = store.create_partition(7).await.unwrap_err();
    assert_eq!(e, Error::PartitionExists { id: 7 });
    assert_eq!(e.class(), ErrorClass::Misuse);
    let e = store.partition(9).await.unwrap_err();
    assert_eq!(e, Error::PartitionNotFound { id: 9 });
    let p = store.partition_or_create(7).await.unwrap();
    fill(&p, 30, 3).await;
    p.trim_before(5).await.unwrap();
    let listed = store.list_partitions().await.unwrap();
    assert_eq!(listed.iter().map(|p| p.id).collect::<Vec<_>>(), ids);
    let info = p.describe().await.unwrap();
    assert_eq!((listed[1].id, listed[1].offsets), (info.id, info.offsets));
    assert_eq!((info.id, info.incarnation), (7, p.incarnation()));
    assert_eq!((info.offsets.log_start(), info.offsets.log_end()), (5, 30));
    assert!(info.segments >= 1 && info.used_bytes > 4096);
    assert!(info.failure.is_none() && !info.read_only);
    close(&store).await;
    let store = ctx.open().await;
    let again = store.list_partitions().await.unwrap();
    assert_eq!(again.iter().map(|p| p.id).collect::<Vec<_>>(), ids);
    assert_eq!(again[1].incarnation, info.incarnation);
    verify(&store.partition(7).await.unwrap(), 5, 30).await;
    close(&store).await;
}

async fn a_deleted_partition_is_gone_and_its_successor_is_new<H: Host>(ctx: Ctx<H>) {
    let (store, old) = ctx.store_and_partition().await;
    fill(&old, 100, 4).await;
    store.delete_partition(&old).await.unwrap();
    let gone = Error::PartitionNotFound { id: 1 };
    assert_eq!(store.partition(1).await.unwrap_err(), gone);
    assert_eq!(ctx.files_like(".seg"), 0, "its space is free");
    let handle_fails = async |old: &Partition| {
        let read = old
            .read(0, ReadLimits::default(), Visibility::Durable)
            .await;
        assert_eq!(read.unwrap_err(), gone);
        assert_eq!(old.append(batch(0, 1)).await.unwrap_err(), gone);
        assert_eq!(
            old.begin_append(batch(0, 1), alluvium_core::Ack::Written)
                .await
                .unwrap_err(),
            gone
        );
        assert_eq!(old.sync().await.unwrap_err(), gone);
        assert_eq!(old.trim_before(1).await.unwrap_err(), gone);
        assert_eq!(old.truncate_to(0).await.unwrap_err(), gone);
        assert_eq!(old.reopen().await.unwrap_err(), gone);
        assert_eq!(old.describe().await.unwrap_err(), gone);
        assert_eq!(old.offset_for_timestamp(0).await.unwrap_err(), gone);
        assert_eq!(old.wait_for(1 << 40).await.unwrap_err(), gone);
        assert_eq!(store.delete_partition(old).await.unwrap_err(), gone);
    };
    handle_fails(&old).await;
    let new = store.create_partition(1).await.unwrap();
    assert_ne!(new.incarnation(), old.incarnation());
    assert_eq!(new.offsets().log_end(), 0);
    fill(&new, 10, 2).await;
    handle_fails(&old).await;
    verify(&new, 0, 10).await;
    let (store, new) = ctx.reopen(store).await;
    verify(&new, 0, 10).await;
    assert_ne!(new.incarnation(), old.incarnation());
    close(&store).await;
}

async fn creation_and_deletion_at_once<H: Host>(ctx: Ctx<H>) {
    let store = ctx.open().await;
    let all = (0..16).map(|_| store.create_partition(5));
    let results = futures_util::future::join_all(all).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    for e in results.into_iter().filter_map(Result::err) {
        assert!(
            matches!(
                e,
                Error::PartitionBusy { id: 5 } | Error::PartitionExists { id: 5 }
            ),
            "{e}"
        );
        assert!(e.is_not_applied());
    }
    let p = store.partition(5).await.unwrap();
    fill(&p, 10, 1).await;
    let deletions = (0..8).map(|_| store.delete_partition(&p));
    let appends = (0..8).map(|_| p.append(batch(10, 1)));
    let (deletions, appends) = futures_util::join!(
        futures_util::future::join_all(deletions),
        futures_util::future::join_all(appends)
    );
    assert_eq!(deletions.iter().filter(|r| r.is_ok()).count(), 1);
    for e in appends.into_iter().filter_map(Result::err) {
        assert!(e.is_not_applied(), "{e}");
    }
    assert!(store.list_partitions().await.unwrap().is_empty());
    close(&store).await;
}

async fn sixty_four_partitions<H: Host>(ctx: Ctx<H>) {
    let store = ctx.open_with(|c| c.shards = Shards::Count(2)).await;
    let mut all = vec![];
    for id in 0..64 {
        all.push(store.create_partition(id).await.unwrap());
    }
    futures_util::future::join_all(all.iter().map(|p| fill(p, 40 + p.id(), 4))).await;
    let stats = store.stats().await.unwrap();
    assert_eq!(stats.iter().map(|s| s.partitions).sum::<usize>(), 64);
    assert!(
        stats.iter().all(|s| s.partitions > 20),
        "both shards have work"
    );
    close(&store).await;
    let (store, report) = ctx.try_open(|_| {}).await.unwrap();
    assert_eq!(report.partitions.len(), 64);
    assert!(report.is_clean(), "{report}");
    for (id, found) in (0..64).zip(&report.partitions) {
        assert_eq!((found.partition, found.log_end), (id, 40 + id));
        verify(&store.partition(id).await.unwrap(), 0, 40 + id).await;
    }
    close(&store).await;
}

async fn the_number_of_shards_may_change<H: Host>(ctx: Ctx<H>) {
    let mut end = 0;
    for shards in [1, 3, 2, 1, 2, 3] {
        let store = ctx.open_with(|c| c.shards = Shards::Count(shards)).await;
        assert_eq!(store.info().shards, shards);
        assert_eq!(store.stats().await.unwrap().len(), shards);
        for id in 0..9 {
            let p = store.partition_or_create(id).await.unwrap();
            verify(&p, 0, end).await;
            fill(&p, 10, 2).await;
        }
        end += 10;
        close(&store).await;
    }
}
