//! Sums that are counted from events; in pieces where there are more than memory holds.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, MapArray, RecordBatch, StringArray};
use datafusion::arrow::datatypes::TimestampMicrosecondType;
use futures::stream::{self, BoxStream, StreamExt};
use sendtrail_schemas::archive::ArchiveView;
use sendtrail_schemas::event::Tags;
use sendtrail_schemas::ids::{AccountId, ConfigSetId};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::rollup::{Added, Apart, Dims, Rollup, Sums, TagsApart};
use sendtrail_schemas::time::{Hour, Millis};

use super::{DataFusionAnalytics, Part, predicate};
use crate::Error;
use crate::analytics::EventQuery;

/// Rows of sums that are told apart at once: as many as ClickHouse is asked for.
const MAX_APART: usize = 1_000_000;
/// Pieces that more is cut into, at most.
const MAX_PIECES: u64 = 1_024;

/// One of so many pieces of sums, by a hash of what tells rows apart: each row is in one of them, and wholly.
#[derive(Clone, Copy, Debug)]
struct Piece {
    at: u64,
    of: u64,
}

impl Piece {
    /// All rows.
    const WHOLE: Self = Self { at: 0, of: 1 };

    fn has(self, dims: &Dims) -> bool {
        if self.of == 1 {
            return true;
        }
        let mut hasher = DefaultHasher::new();
        dims.hash(&mut hasher);
        hasher.finish() % self.of == self.at
    }

    /// Two that are this one together.
    fn halves(self) -> [Self; 2] {
        let of = 2 * self.of;
        [Self { at: self.at, of }, Self { at: self.at + self.of, of }]
    }
}

/// The events of an account in a span.
fn of_span(account: AccountId, from: Millis, to: Millis) -> EventQuery {
    EventQuery { from: Some(from), to: Some(to), ..EventQuery::of(account, 0) }
}

impl DataFusionAnalytics {
    /// Sums of the events of a part.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn scan_in(
        &self,
        account: AccountId,
        from: Millis,
        to: Millis,
        part: Part,
        apart: &Apart,
    ) -> Result<Vec<(Hour, Rollup)>, Error> {
        let view = self.cell.load();
        let query = of_span(account, from, to);
        self.piece(&view, &query, part, apart, Piece::WHOLE, MAX_APART).await
    }

    /// All sums of a span, a piece after the other where there are more than are held at once. All are counted from one view: what comes
    /// or changes meanwhile is in none of them.
    pub(crate) fn scan_in_pieces(
        &self,
        account: AccountId,
        from: Millis,
        to: Millis,
    ) -> BoxStream<'_, Result<Vec<(Hour, Rollup)>, Error>> {
        self.pieces(of_span(account, from, to), MAX_APART)
    }

    /// The same, of no more than `most` rows each.
    fn pieces(&self, query: EventQuery, most: usize) -> BoxStream<'_, Result<Vec<(Hour, Rollup)>, Error>> {
        let view = self.cell.load();
        let next = move |mut left: Vec<Piece>| {
            let (view, query) = (view.clone(), query.clone());
            async move {
                while let Some(piece) = left.pop() {
                    match self.piece(&view, &query, Part::All, &Apart::ALL, piece, most).await {
                        Err(Error::Excess(_)) if piece.of < MAX_PIECES => left.extend(piece.halves()),
                        rows => return Ok::<_, Error>(Some((rows?, left))),
                    }
                }
                Ok(None)
            }
        };
        stream::try_unfold(vec![Piece::WHOLE], next).boxed()
    }

    /// A piece of the sums of what a query is about, of no more than `most` rows.
    async fn piece(
        &self,
        view: &Arc<ArchiveView>,
        query: &EventQuery,
        part: Part,
        apart: &Apart,
        piece: Piece,
        most: usize,
    ) -> Result<Vec<(Hour, Rollup)>, Error> {
        let files = self.choose(view, query, part).await?;
        let tail = part.of_tail(view);
        if files.is_empty() && tail.is_empty() {
            return Ok(Vec::new());
        }
        let mut columns = vec!["occurred_at", "event_type", "unique", "bounce"];
        for (names, is_asked) in [
            (&["configuration_set_name", "config_set_id"][..], apart.config_set),
            (&["from_domain"], apart.from_domain),
            (&["recipient_domain"], apart.recipient_domain),
            (&["tags"], apart.tags != TagsApart::None),
        ] {
            columns.extend(names.iter().filter(|_| is_asked));
        }
        let rows = self.table(view, files, tail)?.filter(predicate(query, part))?.select_columns(&columns)?;
        let mut stream = rows.execute_stream().await?;
        let mut sums: BTreeMap<Hour, Added> = BTreeMap::new();
        while let Some(batch) = stream.next().await {
            add_up(&batch?, apart, piece, &mut sums)?;
            if sums.values().map(Added::len).sum::<usize>() > most {
                return Err(Error::Excess(format!("more than {most} different rows: ask for less at once")));
            }
        }
        let rows = sums.iter_mut().flat_map(|(hour, added)| added.take().into_iter().map(|row| (*hour, row)));
        Ok(rows.collect())
    }
}

/// Adds the rows of a batch up that are in a piece, by what is told apart; the other columns need not be there.
fn add_up(batch: &RecordBatch, apart: &Apart, piece: Piece, sums: &mut BTreeMap<Hour, Added>) -> Result<(), Error> {
    let mistyped = |name: &str| Error::Port(format!("column {name:?} is missing or of another type"));
    let column = |name: &str| batch.column_by_name(name).ok_or_else(|| mistyped(name));
    let text = |name: &'static str| column(name)?.as_string_opt::<i32>().ok_or_else(|| mistyped(name));
    let occurred = column("occurred_at")?.as_primitive_opt::<TimestampMicrosecondType>();
    let occurred = occurred.ok_or_else(|| mistyped("occurred_at"))?;
    let unique = column("unique")?.as_boolean_opt().ok_or_else(|| mistyped("unique"))?;
    let tags = match &apart.tags {
        TagsApart::None => None,
        _ => Some(column("tags")?.as_map_opt().ok_or_else(|| mistyped("tags"))?),
    };
    let bounce = column("bounce")?.as_struct_opt().ok_or_else(|| mistyped("bounce"))?;
    let bounce_type = bounce.column_by_name("bounceType").and_then(|column| column.as_string_opt::<i32>());
    let bounce_type = bounce_type.ok_or_else(|| mistyped("bounce"))?;
    let asked = |name, is_asked: bool| if is_asked { text(name).map(Some) } else { Ok(None) };
    let kinds = text("event_type")?;
    let sets = asked("configuration_set_name", apart.config_set)?;
    let set_ids = asked("config_set_id", apart.config_set)?;
    let from = asked("from_domain", apart.from_domain)?;
    let to = asked("recipient_domain", apart.recipient_domain)?;
    for row in 0..batch.num_rows() {
        let permanent = bounce.is_valid(row)
            && bounce_type.is_valid(row)
            && bounce_type.value(row).eq_ignore_ascii_case("Permanent");
        let kind = EventType::parse(kinds.value(row)).unwrap_or(EventType::Unspecified);
        let added = Sums::of(kind, permanent, unique.value(row));
        if added == Sums::default() {
            continue;
        }
        let some = |column: Option<&StringArray>| {
            column.filter(|column| column.is_valid(row)).map(|column| column.value(row).to_owned())
        };
        let dims = Dims {
            configuration_set_name: some(sets),
            from_domain: some(from),
            recipient_domain: some(to),
            tags: apart.tags.of(tags.map(|tags| read_tags(tags, row)).unwrap_or_default()),
            config_set_id: some(set_ids).and_then(|id| Some(id.parse::<ConfigSetId>().ok()?.bytes().to_vec())),
        };
        if piece.has(&dims) {
            let hour = Millis(occurred.value(row).div_euclid(1_000)).hour();
            sums.entry(hour).or_default().add(dims, &added);
        }
    }
    Ok(())
}

fn read_tags(tags: &MapArray, row: usize) -> Tags {
    if tags.is_null(row) {
        return Tags::new();
    }
    let entries = tags.value(row);
    let (keys, values) = (entries.column(0).as_string_opt::<i32>(), entries.column(1).as_string_opt::<i32>());
    let (Some(keys), Some(values)) = (keys, values) else { return Tags::new() };
    (0..keys.len()).map(|at| (keys.value(at).to_owned(), values.value(at).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use sendtrail_schemas::archive::{ArchiveCell, TailBatch};
    use sendtrail_schemas::columns::EventColumns;
    use sendtrail_schemas::event::Event;
    use sendtrail_schemas::time::HOUR;
    use uuid::Uuid;

    use super::*;

    /// Each row is in one piece, as it is in the whole.
    #[tokio::test]
    async fn pieces_are_the_whole() {
        let account = AccountId(Uuid::from_u128(1));
        let cell = Arc::new(ArchiveCell::default());
        let batch = |first: u64| {
            let mut columns = EventColumns::default();
            for seq in first..first + 50 {
                columns.push(&Event {
                    account_id: account.bytes().to_vec(),
                    seq,
                    occurred_at: seq as i64 % 3 * HOUR,
                    kind: EventType::Delivery as i32,
                    recipient: format!("r{seq}@d{}.example", seq % 70),
                    from: Some(format!("s@f{}.example", seq % 2)),
                    tags: [("t".to_owned(), (seq % 5).to_string())].into(),
                    ..Event::default()
                });
            }
            TailBatch { rows: columns.finish().unwrap(), numbers: Arc::default() }
        };
        let tail: Vec<TailBatch> = (0..1_000).step_by(50).map(batch).collect();
        cell.update(|view| ArchiveView { tail, ..view.clone() });
        let analytics = DataFusionAnalytics::new(cell, 1 << 20, 2);
        let (from, to) = (Millis(0), Millis(3 * HOUR));
        let rows_of = |rows: Vec<(Hour, Rollup)>, of: &mut BTreeMap<(Hour, Dims), Sums>| {
            for (hour, row) in rows {
                assert!(of.insert((hour, row.dims), row.sums).is_none());
            }
        };
        let mut whole = BTreeMap::new();
        rows_of(analytics.scan_in(account, from, to, Part::All, &Apart::ALL).await.unwrap(), &mut whole);
        assert_eq!(whole.len(), 210);
        assert_eq!(whole.values().map(|sums| sums.deliveries).sum::<u64>(), 1_000);
        for (most, at_least) in [(210, 1), (209, 2), (20, 11), (12, 18)] {
            let (mut all, mut count) = (BTreeMap::new(), 0);
            let mut pieces = analytics.pieces(of_span(account, from, to), most);
            while let Some(rows) = pieces.next().await {
                let rows = rows.unwrap();
                assert!(rows.len() <= most);
                rows_of(rows, &mut all);
                count += 1;
            }
            assert_eq!(all, whole);
            assert!(count >= at_least, "{count} pieces of {most}");
        }
    }

    /// What nothing cuts any smaller is refused.
    #[tokio::test]
    async fn pieces_come_to_an_end() {
        let account = AccountId(Uuid::from_u128(1));
        let mut columns = EventColumns::default();
        let kind = EventType::Delivery as i32;
        columns.push(&Event { account_id: account.bytes().to_vec(), kind, ..Event::default() });
        let tail = vec![TailBatch { rows: columns.finish().unwrap(), numbers: Arc::default() }];
        let cell = Arc::new(ArchiveCell::default());
        cell.update(|view| ArchiveView { tail, ..view.clone() });
        let analytics = DataFusionAnalytics::new(cell, 1 << 20, 2);
        let mut pieces = analytics.pieces(of_span(account, Millis(0), Millis(HOUR)), 0);
        let error = loop {
            if let Err(error) = pieces.next().await.unwrap() {
                break error;
            }
        };
        assert!(matches!(error, Error::Excess(_)));
    }
}
