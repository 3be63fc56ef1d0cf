CREATE TABLE search_queue (record_id INTEGER PRIMARY KEY, size INTEGER NOT NULL);

CREATE TABLE upkeep (id INTEGER PRIMARY KEY CHECK (id = 1), paused INTEGER NOT NULL DEFAULT 0, unwiped INTEGER NOT NULL DEFAULT 0);

INSERT INTO upkeep(id) VALUES (1);

CREATE VIEW searchable AS
SELECT r.id AS id, substr(r.content, 1, 1000000) AS content,
  replace(r.context_id, '-', '') AS scope
FROM records r WHERE r.content <> '' AND NOT EXISTS (SELECT 1 FROM search_queue WHERE record_id = r.id);

CREATE VIRTUAL TABLE search_index USING fts5(content, scope,
  content='searchable', content_rowid='id',
  tokenize='unicode61 remove_diacritics 2');

CREATE TRIGGER records_search_insert AFTER INSERT ON records
  WHEN new.content <> '' AND (SELECT paused FROM upkeep) = 0
BEGIN
  INSERT INTO search_queue(record_id, size) VALUES (new.id, min(length(new.content), 1000000));
END;

CREATE TRIGGER records_search_update AFTER UPDATE OF content ON records
  WHEN old.content IS NOT new.content
BEGIN
  INSERT INTO search_index(search_index, rowid, content, scope)
    SELECT 'delete', old.id, substr(old.content, 1, 1000000), replace(old.context_id, '-', '')
    WHERE old.content <> '' AND NOT EXISTS (SELECT 1 FROM search_queue WHERE record_id = old.id);
  DELETE FROM search_queue WHERE record_id = old.id;
  INSERT INTO search_queue(record_id, size)
    SELECT new.id, min(length(new.content), 1000000) WHERE new.content <> '';
END;

CREATE TRIGGER records_search_delete AFTER DELETE ON records
  WHEN old.content <> ''
BEGIN
  INSERT INTO search_index(search_index, rowid, content, scope)
    SELECT 'delete', old.id, substr(old.content, 1, 1000000), replace(old.context_id, '-', '')
    WHERE old.content <> '' AND NOT EXISTS (SELECT 1 FROM search_queue WHERE record_id = old.id);
  DELETE FROM search_queue WHERE record_id = old.id;
END;

CREATE TRIGGER search_queue_insert AFTER INSERT ON search_queue
  WHEN (new.record_id % 64 = 0 OR new.size > 50000) AND (SELECT paused FROM upkeep) = 0
BEGIN
  INSERT INTO search_index(rowid, content, scope)
    SELECT r.id, substr(r.content, 1, 1000000), replace(r.context_id, '-', '')
    FROM (SELECT record_id FROM (
      SELECT record_id, sum(size) OVER (ORDER BY record_id) - size AS before
      FROM (SELECT record_id, size FROM search_queue ORDER BY record_id LIMIT 128))
    WHERE before < 500000) q JOIN records r ON r.id = q.record_id;
  DELETE FROM search_queue WHERE record_id IN (SELECT record_id FROM (
      SELECT record_id, sum(size) OVER (ORDER BY record_id) - size AS before
      FROM (SELECT record_id, size FROM search_queue ORDER BY record_id LIMIT 128))
    WHERE before < 500000);
END;
