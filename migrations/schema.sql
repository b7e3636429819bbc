-- The schema at 028, as PostgreSQL 18 and pg_dump 18 write it.
-- Made by `invoke db.schema`; a change here changes nothing.

--
-- PostgreSQL database dump
--



SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: vector; Type: EXTENSION; Schema: -; Owner: -
--

CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public;


--
-- Name: document_status; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE public.document_status AS ENUM (
    'pending',
    'processing',
    'completed',
    'failed'
);


--
-- Name: message_role; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE public.message_role AS ENUM (
    'user',
    'assistant',
    'system'
);


--
-- Name: scratchpad_entry_type; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE public.scratchpad_entry_type AS ENUM (
    'todo',
    'note',
    'journal'
);


--
-- Name: user_role; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE public.user_role AS ENUM (
    'superadmin',
    'tenant_admin',
    'user'
);


--
-- Name: audit_row_change(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.audit_row_change() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    old_row jsonb;
    new_row jsonb;
    some_row jsonb;
    hidden text[];
    changed text[];
BEGIN
    IF (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = TG_RELID) <> current_user THEN
        RAISE insufficient_privilege USING MESSAGE =
            format('audit_row_change() serves tables of %I only, not %s', current_user, TG_RELID::regclass);
    END IF;
    IF TG_OP <> 'INSERT' THEN
        old_row := to_jsonb(OLD);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        new_row := to_jsonb(NEW);
    END IF;
    some_row := coalesce(new_row, old_row);
    IF TG_OP = 'UPDATE' THEN
        SELECT array_agg(key ORDER BY key) INTO changed FROM jsonb_each(new_row)
        WHERE key <> 'updated_at' AND value IS DISTINCT FROM old_row -> key;
        IF changed IS NULL THEN
            RETURN NULL;
        END IF;
    END IF;
    -- Types with such an id come with extensions and with the project.
    SELECT coalesce(array_agg(attname::text), '{}') INTO hidden FROM pg_attribute
    WHERE attrelid = TG_RELID AND attnum > 0 AND (
        attname ~* 'passw|passphrase|secret|credential|api_?key|private_?key|salt'
        OR attname ~* '(^|_)(otp|pin|token)(_hash)?$'
        OR atttypid = 'tsvector'::regtype
        OR atttypid >= 16384 AND (SELECT typname FROM pg_type WHERE pg_type.oid = atttypid)
            IN ('vector', 'halfvec', 'sparsevec')
    );
    EXECUTE format(
        'INSERT INTO %I.audit_logs (tenant_id, user_id, database_role, table_name, row_id, action, '
        'old_row, new_row, changed_columns) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)', TG_TABLE_SCHEMA
    ) USING
        coalesce((some_row ->> 'tenant_id')::uuid,
                 nullif(current_setting('app.current_tenant_id', true), '')::uuid),
        nullif(current_setting('app.current_user_id', true), '')::uuid,
        session_user::text, TG_TABLE_NAME::text, (some_row ->> TG_ARGV[0])::uuid, lower(TG_OP),
        old_row - hidden, new_row - hidden, changed;
    RETURN NULL;
END;
$_$;


--
-- Name: current_tenant_id(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.current_tenant_id() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN (NULLIF(current_setting('app.current_tenant_id'::text, true), ''::text))::uuid;


--
-- Name: fill_chunks_search_vector(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.fill_chunks_search_vector() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    NEW.search_vector = to_tsvector('pg_catalog.english', NEW.text);
    RETURN NEW;
END;
$$;


--
-- Name: get_chunk_ancestors(uuid, integer); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.get_chunk_ancestors(chunk_id uuid, max_depth integer DEFAULT 32) RETURNS TABLE(ancestor_id uuid, hierarchy_level smallint, depth integer)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    WITH RECURSIVE walk AS (
        SELECT start.chunk_id AS id, start.parent_chunk_id, start.hierarchy_level, 0 AS depth
        FROM chunks AS start
        WHERE start.chunk_id = get_chunk_ancestors.chunk_id
        UNION ALL
        SELECT parent.chunk_id, parent.parent_chunk_id, parent.hierarchy_level, walk.depth + 1
        FROM walk JOIN chunks AS parent ON parent.chunk_id = walk.parent_chunk_id
        WHERE walk.depth < max_depth
    ) CYCLE id SET seen_before USING path
    SELECT walk.id, walk.hierarchy_level, walk.depth
    FROM walk
    WHERE walk.depth > 0 AND NOT walk.seen_before
    ORDER BY walk.depth
$$;


--
-- Name: get_chunk_descendants(uuid, integer); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.get_chunk_descendants(chunk_id uuid, max_depth integer DEFAULT 32) RETURNS TABLE(descendant_id uuid, hierarchy_level smallint, depth integer)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    WITH RECURSIVE walk AS (
        SELECT start.chunk_id AS id, start.hierarchy_level, start.chunk_index, 0 AS depth
        FROM chunks AS start
        WHERE start.chunk_id = get_chunk_descendants.chunk_id
        UNION ALL
        SELECT child.chunk_id, child.hierarchy_level, child.chunk_index, walk.depth + 1
        FROM walk JOIN chunks AS child ON child.parent_chunk_id = walk.id
        WHERE walk.depth < max_depth
    ) CYCLE id SET seen_before USING path
    SELECT walk.id, walk.hierarchy_level, walk.depth
    FROM walk
    WHERE walk.depth > 0 AND NOT walk.seen_before
    ORDER BY walk.depth, walk.chunk_index
$$;


--
-- Name: refuse_audit_change(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.refuse_audit_change() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF NOT pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
        RAISE insufficient_privilege USING MESSAGE =
            format('%s of audit_logs is not for %I: only triggers write it', TG_OP, current_user);
    END IF;
    RETURN NULL;
END;
$$;


--
-- Name: update_updated_at_column(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.update_updated_at_column() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF current_setting('rag_factory.backfill', true) IS DISTINCT FROM 'on' THEN
        NEW.updated_at = now();
    END IF;
    RETURN NEW;
END;
$$;


SET default_table_access_method = heap;

--
-- Name: alembic_version; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);


--
-- Name: audit_logs; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.audit_logs (
    audit_log_id bigint NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    tenant_id uuid,
    user_id uuid,
    database_role text NOT NULL,
    table_name text NOT NULL,
    row_id uuid NOT NULL,
    action text NOT NULL,
    old_row jsonb,
    new_row jsonb,
    changed_columns text[],
    CONSTRAINT ck_audit_logs_action CHECK ((action = ANY (ARRAY['insert'::text, 'update'::text, 'delete'::text])))
);


--
-- Name: audit_logs_audit_log_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.audit_logs ALTER COLUMN audit_log_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.audit_logs_audit_log_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: chunks; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.chunks (
    chunk_id uuid DEFAULT gen_random_uuid() NOT NULL,
    document_id uuid NOT NULL,
    chunk_index integer NOT NULL,
    text text NOT NULL,
    embedding public.vector(1536),
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    parent_chunk_id uuid,
    hierarchy_level smallint DEFAULT 0 NOT NULL,
    hierarchy_metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    tenant_id uuid DEFAULT public.current_tenant_id(),
    search_vector tsvector
);


--
-- Name: chunk_hierarchy_validation; Type: VIEW; Schema: public; Owner: -
--

CREATE VIEW public.chunk_hierarchy_validation WITH (security_invoker='true') AS
 WITH RECURSIVE walk AS (
         SELECT chunks.chunk_id AS start_id,
            chunks.parent_chunk_id AS id
           FROM public.chunks
          WHERE (chunks.parent_chunk_id IS NOT NULL)
        UNION ALL
         SELECT walk.start_id,
            chunks.parent_chunk_id
           FROM (walk
             JOIN public.chunks ON ((chunks.chunk_id = walk.id)))
          WHERE (chunks.parent_chunk_id IS NOT NULL)
        ) CYCLE id SET seen_before USING path
 SELECT DISTINCT chunks.chunk_id,
    chunks.document_id,
    chunks.parent_chunk_id,
    'circular_reference'::text AS problem
   FROM (walk
     JOIN public.chunks ON ((chunks.chunk_id = walk.start_id)))
  WHERE (walk.id = walk.start_id)
UNION ALL
 SELECT child.chunk_id,
    child.document_id,
    child.parent_chunk_id,
    'parent_in_another_document'::text AS problem
   FROM (public.chunks child
     JOIN public.chunks parent ON ((parent.chunk_id = child.parent_chunk_id)))
  WHERE (parent.document_id <> child.document_id)
UNION ALL
 SELECT child.chunk_id,
    child.document_id,
    child.parent_chunk_id,
    'invalid_level'::text AS problem
   FROM (public.chunks child
     LEFT JOIN public.chunks parent ON ((parent.chunk_id = child.parent_chunk_id)))
  WHERE (((child.hierarchy_level < 0) OR (child.hierarchy_level > 3)) OR (child.hierarchy_level <= parent.hierarchy_level));


--
-- Name: collections; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.collections (
    collection_id uuid DEFAULT gen_random_uuid() NOT NULL,
    name text NOT NULL,
    description text NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    tenant_id uuid DEFAULT public.current_tenant_id(),
    CONSTRAINT description_not_empty CHECK (((description IS NOT NULL) AND (length(btrim(description, ' 	
'::text)) > 0)))
);


--
-- Name: conversations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.conversations (
    conversation_id uuid DEFAULT gen_random_uuid() NOT NULL,
    tenant_id uuid DEFAULT public.current_tenant_id(),
    user_id uuid,
    title text,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: documents; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.documents (
    document_id uuid DEFAULT gen_random_uuid() NOT NULL,
    filename text NOT NULL,
    source_path text,
    content_hash text,
    total_chunks integer DEFAULT 0 NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    collection_id uuid,
    tenant_id uuid DEFAULT public.current_tenant_id(),
    status public.document_status DEFAULT 'pending'::public.document_status CONSTRAINT documents_new_status_not_null NOT NULL
);


--
-- Name: messages; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.messages (
    message_id uuid DEFAULT gen_random_uuid() NOT NULL,
    conversation_id uuid NOT NULL,
    tenant_id uuid DEFAULT public.current_tenant_id(),
    role public.message_role NOT NULL,
    content text NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: scratchpad_entries; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.scratchpad_entries (
    scratchpad_entry_id uuid DEFAULT gen_random_uuid() NOT NULL,
    tenant_id uuid DEFAULT public.current_tenant_id(),
    user_id uuid NOT NULL,
    entry_type public.scratchpad_entry_type NOT NULL,
    content text NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: tenants; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.tenants (
    tenant_id uuid DEFAULT gen_random_uuid() NOT NULL,
    name text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT ck_tenants_name_not_empty CHECK ((length(btrim(name)) > 0))
);


--
-- Name: user_memories; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.user_memories (
    user_memory_id uuid DEFAULT gen_random_uuid() NOT NULL,
    tenant_id uuid DEFAULT public.current_tenant_id(),
    user_id uuid NOT NULL,
    content text NOT NULL,
    importance real DEFAULT 0.5 NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT ck_user_memories_importance CHECK (((importance >= (0)::double precision) AND (importance <= (1)::double precision)))
);


--
-- Name: user_preferences; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.user_preferences (
    user_id uuid NOT NULL,
    tenant_id uuid DEFAULT public.current_tenant_id(),
    theme text DEFAULT 'system'::text NOT NULL,
    language text DEFAULT 'en'::text NOT NULL,
    timezone text DEFAULT 'UTC'::text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT ck_user_preferences_language CHECK ((language ~ '^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$'::text)),
    CONSTRAINT ck_user_preferences_theme CHECK ((theme = ANY (ARRAY['system'::text, 'light'::text, 'dark'::text]))),
    CONSTRAINT ck_user_preferences_timezone CHECK ((timezone ~ '^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$'::text))
);


--
-- Name: users; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.users (
    user_id uuid DEFAULT gen_random_uuid() NOT NULL,
    tenant_id uuid DEFAULT public.current_tenant_id(),
    email text NOT NULL,
    display_name text,
    password_hash text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    email_verified boolean DEFAULT false NOT NULL,
    role public.user_role DEFAULT 'user'::public.user_role CONSTRAINT users_new_role_not_null NOT NULL,
    CONSTRAINT ck_users_email_is_address CHECK ((email ~ '^[^@\s]+@[^@\s]+$'::text)),
    CONSTRAINT ck_users_superadmin_has_no_tenant CHECK (((role <> 'superadmin'::public.user_role) OR (tenant_id IS NULL)))
);


--
-- Name: alembic_version alembic_version_pkc; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);


--
-- Name: audit_logs pk_audit_logs; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.audit_logs
    ADD CONSTRAINT pk_audit_logs PRIMARY KEY (audit_log_id);


--
-- Name: chunks pk_chunks; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.chunks
    ADD CONSTRAINT pk_chunks PRIMARY KEY (chunk_id);


--
-- Name: collections pk_collections; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.collections
    ADD CONSTRAINT pk_collections PRIMARY KEY (collection_id);


--
-- Name: conversations pk_conversations; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.conversations
    ADD CONSTRAINT pk_conversations PRIMARY KEY (conversation_id);


--
-- Name: documents pk_documents; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.documents
    ADD CONSTRAINT pk_documents PRIMARY KEY (document_id);


--
-- Name: messages pk_messages; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.messages
    ADD CONSTRAINT pk_messages PRIMARY KEY (message_id);


--
-- Name: scratchpad_entries pk_scratchpad_entries; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.scratchpad_entries
    ADD CONSTRAINT pk_scratchpad_entries PRIMARY KEY (scratchpad_entry_id);


--
-- Name: tenants pk_tenants; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.tenants
    ADD CONSTRAINT pk_tenants PRIMARY KEY (tenant_id);


--
-- Name: user_memories pk_user_memories; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.user_memories
    ADD CONSTRAINT pk_user_memories PRIMARY KEY (user_memory_id);


--
-- Name: user_preferences pk_user_preferences; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.user_preferences
    ADD CONSTRAINT pk_user_preferences PRIMARY KEY (user_id);


--
-- Name: users pk_users; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.users
    ADD CONSTRAINT pk_users PRIMARY KEY (user_id);


--
-- Name: idx_audit_logs_row; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_audit_logs_row ON public.audit_logs USING btree (table_name, row_id, created_at);


--
-- Name: idx_audit_logs_tenant_created; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_audit_logs_tenant_created ON public.audit_logs USING btree (tenant_id, created_at);


--
-- Name: idx_chunks_created_at; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_chunks_created_at ON public.chunks USING btree (created_at);


--
-- Name: idx_chunks_document_id_index; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX idx_chunks_document_id_index ON public.chunks USING btree (document_id, chunk_index);


--
-- Name: idx_chunks_embedding_hnsw; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_chunks_embedding_hnsw ON public.chunks USING hnsw (embedding public.vector_cosine_ops);


--
-- Name: idx_chunks_hierarchy; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_chunks_hierarchy ON public.chunks USING btree (document_id, hierarchy_level, chunk_index);


--
-- Name: idx_chunks_parent_chunk_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_chunks_parent_chunk_id ON public.chunks USING btree (parent_chunk_id);


--
-- Name: idx_chunks_search_vector; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_chunks_search_vector ON public.chunks USING gin (search_vector);


--
-- Name: idx_chunks_tenant_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_chunks_tenant_id ON public.chunks USING btree (tenant_id) WHERE (tenant_id IS NOT NULL);


--
-- Name: idx_collections_tenant_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_collections_tenant_id ON public.collections USING btree (tenant_id) WHERE (tenant_id IS NOT NULL);


--
-- Name: idx_conversations_tenant_created; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_conversations_tenant_created ON public.conversations USING btree (tenant_id, created_at);


--
-- Name: idx_conversations_user_created; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_conversations_user_created ON public.conversations USING btree (user_id, created_at);


--
-- Name: idx_documents_collection_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_documents_collection_id ON public.documents USING btree (collection_id);


--
-- Name: idx_documents_tenant_status_created; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_documents_tenant_status_created ON public.documents USING btree (tenant_id, status, created_at);


--
-- Name: idx_messages_conversation_created; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_messages_conversation_created ON public.messages USING btree (conversation_id, created_at, message_id);


--
-- Name: idx_scratchpad_user_type; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_scratchpad_user_type ON public.scratchpad_entries USING btree (user_id, entry_type, created_at);


--
-- Name: idx_user_memories_importance; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idx_user_memories_importance ON public.user_memories USING btree (user_id, importance DESC, user_memory_id);


--
-- Name: uq_collections_collection_id_tenant_id; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX uq_collections_collection_id_tenant_id ON public.collections USING btree (collection_id, tenant_id);


--
-- Name: uq_conversations_conversation_id_tenant_id; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX uq_conversations_conversation_id_tenant_id ON public.conversations USING btree (conversation_id, tenant_id);


--
-- Name: uq_documents_document_id_tenant_id; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX uq_documents_document_id_tenant_id ON public.documents USING btree (document_id, tenant_id);


--
-- Name: uq_documents_source; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX uq_documents_source ON public.documents USING btree (tenant_id, collection_id, source_path) NULLS NOT DISTINCT WHERE (source_path IS NOT NULL);


--
-- Name: uq_users_email; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX uq_users_email ON public.users USING btree (tenant_id, lower(email)) NULLS NOT DISTINCT;


--
-- Name: uq_users_user_id_tenant_id; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX uq_users_user_id_tenant_id ON public.users USING btree (user_id, tenant_id);


--
-- Name: conversations audit_conversations; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER audit_conversations AFTER INSERT OR DELETE OR UPDATE ON public.conversations FOR EACH ROW EXECUTE FUNCTION public.audit_row_change('conversation_id');


--
-- Name: documents audit_documents; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER audit_documents AFTER INSERT OR DELETE OR UPDATE ON public.documents FOR EACH ROW EXECUTE FUNCTION public.audit_row_change('document_id');


--
-- Name: users audit_users; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER audit_users AFTER INSERT OR DELETE OR UPDATE ON public.users FOR EACH ROW EXECUTE FUNCTION public.audit_row_change('user_id');


--
-- Name: chunks fill_chunks_search_vector; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER fill_chunks_search_vector BEFORE INSERT OR UPDATE OF text ON public.chunks FOR EACH ROW EXECUTE FUNCTION public.fill_chunks_search_vector();


--
-- Name: audit_logs refuse_audit_change; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER refuse_audit_change BEFORE INSERT OR DELETE OR UPDATE OR TRUNCATE ON public.audit_logs FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_audit_change();


--
-- Name: chunks update_chunks_updated_at; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER update_chunks_updated_at BEFORE UPDATE ON public.chunks FOR EACH ROW EXECUTE FUNCTION public.update_updated_at_column();


--
-- Name: collections update_collections_updated_at; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER update_collections_updated_at BEFORE UPDATE ON public.collections FOR EACH ROW EXECUTE FUNCTION public.update_updated_at_column();


--
-- Name: conversations update_conversations_updated_at; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER update_conversations_updated_at BEFORE UPDATE ON public.conversations FOR EACH ROW EXECUTE FUNCTION public.update_updated_at_column();


--
-- Name: documents update_documents_updated_at; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER update_documents_updated_at BEFORE UPDATE ON public.documents FOR EACH ROW EXECUTE FUNCTION public.update_updated_at_column();


--
-- Name: messages update_messages_updated_at; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER update_messages_updated_at BEFORE UPDATE ON public.messages FOR EACH ROW EXECUTE FUNCTION public.update_updated_at_column();


--
-- Name: scratchpad_entries update_scratchpad_entries_updated_at; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER update_scratchpad_entries_updated_at BEFORE UPDATE ON public.scratchpad_entries FOR EACH ROW EXECUTE FUNCTION public.update_updated_at_column();


--
-- Name: tenants update_tenants_updated_at; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER update_tenants_updated_at BEFORE UPDATE ON public.tenants FOR EACH ROW EXECUTE FUNCTION public.update_updated_at_column();


--
-- Name: user_memories update_user_memories_updated_at; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER update_user_memories_updated_at BEFORE UPDATE ON public.user_memories FOR EACH ROW EXECUTE FUNCTION public.update_updated_at_column();


--
-- Name: user_preferences update_user_preferences_updated_at; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER update_user_preferences_updated_at BEFORE UPDATE ON public.user_preferences FOR EACH ROW EXECUTE FUNCTION public.update_updated_at_column();


--
-- Name: users update_users_updated_at; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER update_users_updated_at BEFORE UPDATE ON public.users FOR EACH ROW EXECUTE FUNCTION public.update_updated_at_column();


--
-- Name: chunks fk_chunks_document_id_documents; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.chunks
    ADD CONSTRAINT fk_chunks_document_id_documents FOREIGN KEY (document_id) REFERENCES public.documents(document_id) ON DELETE CASCADE;


--
-- Name: chunks fk_chunks_document_id_tenant_id_documents; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.chunks
    ADD CONSTRAINT fk_chunks_document_id_tenant_id_documents FOREIGN KEY (document_id, tenant_id) REFERENCES public.documents(document_id, tenant_id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: chunks fk_chunks_parent_chunk_id_chunks; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.chunks
    ADD CONSTRAINT fk_chunks_parent_chunk_id_chunks FOREIGN KEY (parent_chunk_id) REFERENCES public.chunks(chunk_id) ON DELETE CASCADE;


--
-- Name: collections fk_collections_tenant_id_tenants; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.collections
    ADD CONSTRAINT fk_collections_tenant_id_tenants FOREIGN KEY (tenant_id) REFERENCES public.tenants(tenant_id);


--
-- Name: conversations fk_conversations_tenant_id_tenants; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.conversations
    ADD CONSTRAINT fk_conversations_tenant_id_tenants FOREIGN KEY (tenant_id) REFERENCES public.tenants(tenant_id);


--
-- Name: conversations fk_conversations_user_id_tenant_id_users; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.conversations
    ADD CONSTRAINT fk_conversations_user_id_tenant_id_users FOREIGN KEY (user_id, tenant_id) REFERENCES public.users(user_id, tenant_id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: conversations fk_conversations_user_id_users; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.conversations
    ADD CONSTRAINT fk_conversations_user_id_users FOREIGN KEY (user_id) REFERENCES public.users(user_id) ON DELETE CASCADE;


--
-- Name: documents fk_documents_collection_id_collections; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.documents
    ADD CONSTRAINT fk_documents_collection_id_collections FOREIGN KEY (collection_id) REFERENCES public.collections(collection_id) ON DELETE RESTRICT;


--
-- Name: documents fk_documents_collection_id_tenant_id_collections; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.documents
    ADD CONSTRAINT fk_documents_collection_id_tenant_id_collections FOREIGN KEY (collection_id, tenant_id) REFERENCES public.collections(collection_id, tenant_id) ON UPDATE CASCADE ON DELETE RESTRICT;


--
-- Name: documents fk_documents_tenant_id_tenants; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.documents
    ADD CONSTRAINT fk_documents_tenant_id_tenants FOREIGN KEY (tenant_id) REFERENCES public.tenants(tenant_id);


--
-- Name: messages fk_messages_conversation_id_conversations; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.messages
    ADD CONSTRAINT fk_messages_conversation_id_conversations FOREIGN KEY (conversation_id) REFERENCES public.conversations(conversation_id) ON DELETE CASCADE;


--
-- Name: messages fk_messages_conversation_id_tenant_id_conversations; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.messages
    ADD CONSTRAINT fk_messages_conversation_id_tenant_id_conversations FOREIGN KEY (conversation_id, tenant_id) REFERENCES public.conversations(conversation_id, tenant_id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: scratchpad_entries fk_scratchpad_entries_user_id_tenant_id_users; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.scratchpad_entries
    ADD CONSTRAINT fk_scratchpad_entries_user_id_tenant_id_users FOREIGN KEY (user_id, tenant_id) REFERENCES public.users(user_id, tenant_id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: scratchpad_entries fk_scratchpad_entries_user_id_users; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.scratchpad_entries
    ADD CONSTRAINT fk_scratchpad_entries_user_id_users FOREIGN KEY (user_id) REFERENCES public.users(user_id) ON DELETE CASCADE;


--
-- Name: user_memories fk_user_memories_user_id_tenant_id_users; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.user_memories
    ADD CONSTRAINT fk_user_memories_user_id_tenant_id_users FOREIGN KEY (user_id, tenant_id) REFERENCES public.users(user_id, tenant_id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: user_memories fk_user_memories_user_id_users; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.user_memories
    ADD CONSTRAINT fk_user_memories_user_id_users FOREIGN KEY (user_id) REFERENCES public.users(user_id) ON DELETE CASCADE;


--
-- Name: user_preferences fk_user_preferences_user_id_tenant_id_users; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.user_preferences
    ADD CONSTRAINT fk_user_preferences_user_id_tenant_id_users FOREIGN KEY (user_id, tenant_id) REFERENCES public.users(user_id, tenant_id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: user_preferences fk_user_preferences_user_id_users; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.user_preferences
    ADD CONSTRAINT fk_user_preferences_user_id_users FOREIGN KEY (user_id) REFERENCES public.users(user_id) ON DELETE CASCADE;


--
-- Name: users fk_users_tenant_id_tenants; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.users
    ADD CONSTRAINT fk_users_tenant_id_tenants FOREIGN KEY (tenant_id) REFERENCES public.tenants(tenant_id);


--
-- Name: audit_logs; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.audit_logs ENABLE ROW LEVEL SECURITY;

--
-- Name: chunks; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.chunks ENABLE ROW LEVEL SECURITY;

--
-- Name: collections; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.collections ENABLE ROW LEVEL SECURITY;

--
-- Name: conversations; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.conversations ENABLE ROW LEVEL SECURITY;

--
-- Name: documents; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.documents ENABLE ROW LEVEL SECURITY;

--
-- Name: messages; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.messages ENABLE ROW LEVEL SECURITY;

--
-- Name: scratchpad_entries; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.scratchpad_entries ENABLE ROW LEVEL SECURITY;

--
-- Name: chunks tenant_isolation; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY tenant_isolation ON public.chunks USING ((tenant_id = public.current_tenant_id())) WITH CHECK ((tenant_id = public.current_tenant_id()));


--
-- Name: collections tenant_isolation; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY tenant_isolation ON public.collections USING ((tenant_id = public.current_tenant_id())) WITH CHECK ((tenant_id = public.current_tenant_id()));


--
-- Name: conversations tenant_isolation; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY tenant_isolation ON public.conversations USING ((tenant_id = public.current_tenant_id())) WITH CHECK ((tenant_id = public.current_tenant_id()));


--
-- Name: documents tenant_isolation; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY tenant_isolation ON public.documents USING ((tenant_id = public.current_tenant_id())) WITH CHECK ((tenant_id = public.current_tenant_id()));


--
-- Name: messages tenant_isolation; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY tenant_isolation ON public.messages USING ((tenant_id = public.current_tenant_id())) WITH CHECK ((tenant_id = public.current_tenant_id()));


--
-- Name: scratchpad_entries tenant_isolation; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY tenant_isolation ON public.scratchpad_entries USING ((tenant_id = public.current_tenant_id())) WITH CHECK ((tenant_id = public.current_tenant_id()));


--
-- Name: tenants tenant_isolation; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY tenant_isolation ON public.tenants USING ((tenant_id = public.current_tenant_id())) WITH CHECK ((tenant_id = public.current_tenant_id()));


--
-- Name: user_memories tenant_isolation; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY tenant_isolation ON public.user_memories USING ((tenant_id = public.current_tenant_id())) WITH CHECK ((tenant_id = public.current_tenant_id()));


--
-- Name: user_preferences tenant_isolation; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY tenant_isolation ON public.user_preferences USING ((tenant_id = public.current_tenant_id())) WITH CHECK ((tenant_id = public.current_tenant_id()));


--
-- Name: users tenant_isolation; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY tenant_isolation ON public.users USING ((tenant_id = public.current_tenant_id())) WITH CHECK ((tenant_id = public.current_tenant_id()));


--
-- Name: audit_logs tenant_reads; Type: POLICY; Schema: public; Owner: -
--

CREATE POLICY tenant_reads ON public.audit_logs FOR SELECT USING ((tenant_id = public.current_tenant_id()));


--
-- Name: tenants; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.tenants ENABLE ROW LEVEL SECURITY;

--
-- Name: user_memories; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.user_memories ENABLE ROW LEVEL SECURITY;

--
-- Name: user_preferences; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.user_preferences ENABLE ROW LEVEL SECURITY;

--
-- Name: users; Type: ROW SECURITY; Schema: public; Owner: -
--

ALTER TABLE public.users ENABLE ROW LEVEL SECURITY;

--
-- PostgreSQL database dump complete
--
