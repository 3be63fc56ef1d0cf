CREATE INDEX records_text ON records USING gin (to_tsvector('simple'::regconfig, left(records.content, 100000)));
