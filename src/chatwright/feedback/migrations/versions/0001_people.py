"""Accounts, conversations, evaluations and the journal."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

MOMENT = sa.DateTime(timezone=True)
REFUSED = {
    "journal": ("UPDATE", "DELETE", "TRUNCATE"),  # only ever grows
    "messages": ("UPDATE",),  # what was judged stays what was said
    "parts": ("UPDATE",),
}


def upgrade() -> None:
    op.create_table(
        "journal",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=True),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("subject_id", sa.Uuid(), nullable=False),
        sa.Column("fields", sa.JSON(), nullable=False),
        sa.CheckConstraint("action IN ('added', 'changed', 'removed')", name=op.f("ck_journal_action")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_journal")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("password_hash", sa.String(length=256), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("consent", sa.Boolean(), nullable=False),
        sa.Column("pseudonym", sa.String(length=32), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint("name <> ''", name=op.f("ck_users_name")),
        sa.CheckConstraint("role IN ('owner', 'admin', 'annotator', 'user')", name=op.f("ck_users_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("name", name=op.f("uq_users_name")),
        sa.UniqueConstraint("pseudonym", name=op.f("uq_users_pseudonym")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("revoked_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_api_keys_owner_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_api_keys_key_hash")),
    )
    op.create_index(op.f("ix_api_keys_owner_id"), "api_keys", ["owner_id"], unique=False)
    op.create_table(
        "conversations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_conversations_owner_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_conversations")),
    )
    op.create_index(op.f("ix_conversations_owner_id"), "conversations", ["owner_id"], unique=False)
    op.create_table(
        "files",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_files_sha256")),
        sa.CheckConstraint("size = length(data)", name=op.f("ck_files_size")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_files_owner_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
        sa.UniqueConstraint("owner_id", "sha256", name=op.f("uq_files_owner_id_sha256")),
    )
    op.create_table(
        "links",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("made_by", sa.Uuid(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.CheckConstraint("made_by IS NOT NULL OR role = 'owner'", name=op.f("ck_links_made_by")),
        sa.CheckConstraint("role IN ('owner', 'admin', 'annotator', 'user')", name=op.f("ck_links_role")),
        sa.ForeignKeyConstraint(["made_by"], ["users.id"], name=op.f("fk_links_made_by"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_links")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_links_token_hash")),
    )
    op.create_index(
        "ix_links_first_owner",
        "links",
        ["role"],
        unique=True,
        sqlite_where=sa.text("made_by IS NULL"),
        postgresql_where=sa.text("made_by IS NULL"),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_sessions_owner_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_sessions_token_hash")),
    )
    op.create_index(op.f("ix_sessions_owner_id"), "sessions", ["owner_id"], unique=False)
    op.create_table(
        "messages",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("conversation_id", sa.Uuid(), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("checkpoint", sa.String(length=64), nullable=True),
        sa.Column("sampling", sa.JSON(), nullable=True),
        sa.Column("finish_reason", sa.String(length=16), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=True),
        sa.Column("completion_tokens", sa.Integer(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.CheckConstraint(
            "finish_reason IN ('stop', 'length', 'tool_calls', 'cancelled')", name=op.f("ck_messages_finish_reason")
        ),
        sa.CheckConstraint("parent_id IS NOT NULL OR role IN ('system', 'user')", name=op.f("ck_messages_root")),
        sa.CheckConstraint(
            "role = 'assistant' AND model IS NOT NULL AND checkpoint IS NOT NULL AND sampling IS NOT NULL"
            " AND finish_reason IS NOT NULL AND prompt_tokens IS NOT NULL AND completion_tokens IS NOT NULL"
            " OR role <> 'assistant' AND model IS NULL AND checkpoint IS NULL AND sampling IS NULL"
            " AND finish_reason IS NULL AND prompt_tokens IS NULL AND completion_tokens IS NULL",
            name=op.f("ck_messages_answer"),
        ),
        sa.CheckConstraint("role IN ('system', 'user', 'assistant', 'tool')", name=op.f("ck_messages_role")),
        sa.CheckConstraint("parent_id <> id", name=op.f("ck_messages_parent")),
        sa.CheckConstraint("prompt_tokens >= 0 AND completion_tokens >= 0", name=op.f("ck_messages_tokens")),
        sa.ForeignKeyConstraint(
            ["conversation_id", "parent_id"],
            ["messages.conversation_id", "messages.id"],
            name=op.f("fk_messages_conversation_id_parent_id"),
        ),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversations.id"], name=op.f("fk_messages_conversation_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_messages")),
        sa.UniqueConstraint("conversation_id", "id", name=op.f("uq_messages_conversation_id_id")),
        sa.UniqueConstraint("conversation_id", "number", name=op.f("uq_messages_conversation_id_number")),
        sa.UniqueConstraint("parent_id", "id", name=op.f("uq_messages_parent_id_id")),
    )
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("prompt_id", sa.Uuid(), nullable=False),
        sa.Column("message_id", sa.Uuid(), nullable=False),
        sa.Column("other_id", sa.Uuid(), nullable=True),
        sa.Column("good", sa.Boolean(), nullable=True),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("verdict", sa.String(length=16), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("changed_at", MOMENT, nullable=False),
        sa.CheckConstraint(
            "kind = 'thumb' AND good IS NOT NULL AND text IS NULL AND other_id IS NULL AND verdict IS NULL"
            " OR kind = 'correction' AND text <> '' AND text IS NOT NULL AND good IS NULL"
            " AND other_id IS NULL AND verdict IS NULL OR kind = 'comparison' AND other_id <> message_id"
            " AND other_id IS NOT NULL AND verdict IS NOT NULL AND good IS NULL AND text IS NULL",
            name=op.f("ck_evaluations_kind"),
        ),
        sa.CheckConstraint("verdict IN ('first', 'second', 'tie', 'neither')", name=op.f("ck_evaluations_verdict")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_evaluations_owner_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["prompt_id", "message_id"],
            ["messages.parent_id", "messages.id"],
            name=op.f("fk_evaluations_prompt_id_message_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["prompt_id", "other_id"],
            ["messages.parent_id", "messages.id"],
            name=op.f("fk_evaluations_prompt_id_other_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
        sa.UniqueConstraint(
            "owner_id", "message_id", "other_id", name=op.f("uq_evaluations_owner_id_message_id_other_id")
        ),
    )
    op.create_index(
        "ix_evaluations_one",
        "evaluations",
        ["owner_id", "message_id", "kind"],
        unique=True,
        sqlite_where=sa.text("other_id IS NULL"),
        postgresql_where=sa.text("other_id IS NULL"),
    )
    op.create_index(
        op.f("ix_evaluations_prompt_id_message_id"), "evaluations", ["prompt_id", "message_id"], unique=False
    )
    op.create_index(op.f("ix_evaluations_prompt_id_other_id"), "evaluations", ["prompt_id", "other_id"], unique=False)
    op.create_table(
        "parts",
        sa.Column("message_id", sa.Uuid(), nullable=False),
        sa.Column("place", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("file_id", sa.Uuid(), nullable=True),
        sa.CheckConstraint(
            "type = 'text' AND text IS NOT NULL AND file_id IS NULL OR type IN ('image', 'audio', 'video')"
            " AND text IS NULL AND file_id IS NOT NULL",
            name=op.f("ck_parts_content"),
        ),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_parts_file_id")),
        sa.ForeignKeyConstraint(["message_id"], ["messages.id"], name=op.f("fk_parts_message_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("message_id", "place", name=op.f("pk_parts")),
    )
    op.create_index(op.f("ix_parts_file_id"), "parts", ["file_id"], unique=False)

    for table, changes in REFUSED.items():
        for change in changes:
            _refuse(table, change)
    if op.get_bind().dialect.name == "sqlite":
        # INSERT OR REPLACE removes a row without asking the triggers for removals.
        op.execute(
            "CREATE TRIGGER journal_refuses_replace BEFORE INSERT ON journal"
            " WHEN EXISTS (SELECT 1 FROM journal WHERE id = NEW.id)"
            " BEGIN SELECT RAISE(ABORT, 'journal refuses REPLACE'); END"
        )


def _refuse(table: str, change: str) -> None:
    """Make the database refuse a kind of change to a table, whoever asks for it."""
    name = f"{table}_refuses_{change.lower()}"
    if op.get_bind().dialect.name == "sqlite":
        if change != "TRUNCATE":  # SQLite has none
            op.execute(
                f"CREATE TRIGGER {name} BEFORE {change} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} refuses {change}'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{table} refuses {change}' USING ERRCODE = 'restrict_violation'; END $$"
    )
    op.execute(f"CREATE TRIGGER {name} BEFORE {change} ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {name}()")
