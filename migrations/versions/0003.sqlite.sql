CREATE TABLE contexts (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    start_time DATETIME NOT NULL,
    use_server_side_threading BOOLEAN DEFAULT 0 NOT NULL,
    last_response_id TEXT,
    next_seq INTEGER DEFAULT '1' NOT NULL,
    record_count INTEGER DEFAULT '0' NOT NULL,
    live_count INTEGER DEFAULT '0' NOT NULL,
    live_tokens INTEGER DEFAULT '0' NOT NULL,
    uncounted INTEGER DEFAULT '0' NOT NULL,
    total_tokens INTEGER DEFAULT '0' NOT NULL,
    last_activity DATETIME,
    max_tokens INTEGER,
    parent_context_id TEXT,
    metadata TEXT,
    epoch INTEGER DEFAULT '0' NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (name)
);

CREATE TABLE context_tools (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    context_id TEXT NOT NULL,
    tool_name TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    UNIQUE (context_id, tool_name),
    FOREIGN KEY(context_id) REFERENCES contexts (id) ON DELETE CASCADE
);

CREATE TABLE records (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    context_id TEXT NOT NULL,
    ts DATETIME NOT NULL,
    source INTEGER NOT NULL,
    content TEXT NOT NULL,
    live BOOLEAN NOT NULL,
    est_tokens INTEGER NOT NULL,
    response_id TEXT,
    streamed BOOLEAN DEFAULT 0 NOT NULL,
    partial_response_id TEXT,
    accumulated_tokens INTEGER,
    seq INTEGER NOT NULL,
    position INTEGER NOT NULL,
    turn_id TEXT,
    call_id TEXT,
    name TEXT,
    payload TEXT,
    checksum INTEGER,
    idempotency_key TEXT,
    pinned BOOLEAN DEFAULT 0 NOT NULL,
    error BOOLEAN DEFAULT 0 NOT NULL,
    uncounted BOOLEAN DEFAULT 0 NOT NULL,
    FOREIGN KEY(context_id) REFERENCES contexts (id) ON DELETE CASCADE
);

CREATE TABLE turns (
    id TEXT NOT NULL,
    context_id TEXT NOT NULL,
    state TEXT NOT NULL,
    owner TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    heartbeat REAL NOT NULL,
    expires REAL NOT NULL,
    started DATETIME NOT NULL,
    ended DATETIME,
    error TEXT,
    PRIMARY KEY (id),
    FOREIGN KEY(context_id) REFERENCES contexts (id) ON DELETE CASCADE
)
 WITHOUT ROWID;

CREATE TABLE calls (
    id INTEGER NOT NULL,
    turn_id TEXT NOT NULL,
    context_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    started DATETIME NOT NULL,
    response_id TEXT,
    cursor TEXT,
    finish_reason TEXT,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cache_read_tokens INTEGER,
    cache_write_tokens INTEGER,
    reasoning_tokens INTEGER,
    usage_estimated BOOLEAN DEFAULT 0 NOT NULL,
    cost TEXT,
    ttft REAL,
    duration REAL,
    error TEXT,
    manifest TEXT DEFAULT '[]' NOT NULL,
    options TEXT DEFAULT '{}' NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(turn_id) REFERENCES turns (id) ON DELETE CASCADE
);

CREATE TABLE record_deltas (
    record_id INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    delta TEXT NOT NULL,
    PRIMARY KEY (record_id, idx),
    FOREIGN KEY(record_id) REFERENCES records (id) ON DELETE CASCADE
)
 WITHOUT ROWID;

CREATE INDEX idx_context_tools_context ON context_tools (context_id);

CREATE INDEX idx_context_live ON records (context_id, live);

CREATE UNIQUE INDEX records_context_seq ON records (context_id, seq);

CREATE UNIQUE INDEX records_idempotency ON records (context_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE INDEX records_order ON records (context_id, position, seq);

CREATE INDEX records_partial ON records (partial_response_id) WHERE partial_response_id IS NOT NULL;

CREATE INDEX records_turn ON records (turn_id) WHERE turn_id IS NOT NULL;

CREATE INDEX turns_context ON turns (context_id, started);

CREATE UNIQUE INDEX turns_one_running ON turns (context_id) WHERE state = 'running';

CREATE INDEX calls_turn ON calls (turn_id);

CREATE VIEW transcript AS
SELECT c.name AS context, r.seq AS seq, r.ts AS time,
  CASE r.source WHEN 0 THEN 'user' WHEN 1 THEN 'assistant' WHEN 2 THEN 'tool call'
    WHEN 3 THEN 'tool output' WHEN 4 THEN 'system' WHEN 5 THEN 'reasoning'
    WHEN 6 THEN 'summary' ELSE 'unknown' END AS role,
  r.name AS tool, r.content || coalesce((SELECT group_concat(delta, '') FROM (SELECT delta FROM record_deltas d WHERE d.record_id = r.id ORDER BY idx)), '') AS text,
  CASE WHEN r.partial_response_id IS NULL THEN 'whole'
    WHEN t.state = 'running' THEN 'streaming' ELSE 'partial' END AS state,
  r.live AS live, r.id AS record_id
FROM records r JOIN contexts c ON c.id = r.context_id LEFT JOIN turns t ON t.id = r.turn_id
ORDER BY c.name, r.position, r.seq;

CREATE VIEW usage_by_day AS
SELECT substr(started, 1, 10) AS day, provider, model, count(*) AS calls,
  sum(coalesce(input_tokens, 0)) AS input_tokens,
  sum(coalesce(output_tokens, 0)) AS output_tokens,
  sum(coalesce(cache_read_tokens, 0)) AS cache_read_tokens,
  sum(coalesce(cache_write_tokens, 0)) AS cache_write_tokens,
  sum(coalesce(reasoning_tokens, 0)) AS reasoning_tokens,
  sum(CAST(cost AS REAL)) AS cost
FROM calls GROUP BY substr(started, 1, 10), provider, model;

CREATE VIEW interrupted_turns AS
SELECT t.id AS turn_id, c.name AS context, t.state AS state, t.started AS started,
  t.owner AS owner, t.error AS error,
  (SELECT r.content || coalesce((SELECT group_concat(delta, '') FROM (SELECT delta FROM record_deltas d WHERE d.record_id = r.id ORDER BY idx)), '') FROM records r
    WHERE r.turn_id = t.id AND r.partial_response_id IS NOT NULL AND r.source = 1
    ORDER BY r.seq DESC LIMIT 1) AS partial_text
FROM turns t JOIN contexts c ON c.id = t.context_id
WHERE t.state IN ('interrupted', 'running');
