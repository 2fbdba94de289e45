"""Run by alembic with the connection that `chatwright.feedback.database` gives; all revisions are one transaction."""

from alembic import context

from chatwright.feedback.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, transactional_ddl=True
)
with context.begin_transaction():
    context.run_migrations()
