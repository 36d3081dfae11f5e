-- The roles and databases of MLPA and of its LiteLLM. Run by a superuser with psql, as often as you like, before
-- `mlpa migrate`, which runs as mlpa_owner and grants the others what they need (migrations/grants.py):
--   MLPA_OWNER_PASSWORD=... MLPA_AUTH_PASSWORD=... MLPA_GATEWAY_PASSWORD=... LITELLM_PASSWORD=... \
--   MLPA_MONITOR_PASSWORD=... psql -f deploy/roles.sql
-- Tables and functions that were there before get the owner that they should have.
\set ON_ERROR_STOP on
\getenv owner_password MLPA_OWNER_PASSWORD
\getenv auth_password MLPA_AUTH_PASSWORD
\getenv gateway_password MLPA_GATEWAY_PASSWORD
\getenv litellm_password LITELLM_PASSWORD
\getenv monitor_password MLPA_MONITOR_PASSWORD
\if :{?database} \else \set database app_attest \endif
\if :{?litellm_database} \else \set litellm_database litellm \endif

select format('create role %I', name) from unnest(array['mlpa_owner', 'mlpa_auth', 'mlpa_gateway', 'litellm', 'mlpa_monitor']) as name
where not exists (select from pg_roles where rolname = name) \gexec
alter role mlpa_owner login nosuperuser nocreatedb nocreaterole noreplication nobypassrls password :'owner_password';
alter role mlpa_auth login nosuperuser nocreatedb nocreaterole noreplication nobypassrls password :'auth_password';
alter role mlpa_gateway login nosuperuser nocreatedb nocreaterole noreplication nobypassrls password :'gateway_password';
alter role litellm login nosuperuser nocreatedb nocreaterole noreplication nobypassrls password :'litellm_password';
alter role mlpa_monitor login nosuperuser nocreatedb nocreaterole noreplication nobypassrls password :'monitor_password';
-- For postgres_exporter: the server's statistics, and no table
grant pg_monitor to mlpa_monitor;

-- What a service no longer waits for, the server gives up too. It is the role's, not the connection's: a pooler refuses
-- settings in the startup packet. Jobs ask for longer with SET LOCAL; mlpa_owner, who migrates, has no limit.
alter role mlpa_auth set statement_timeout = '2s';
alter role mlpa_auth set idle_in_transaction_session_timeout = '4s';
alter role mlpa_auth set client_connection_check_interval = '200ms';
alter role mlpa_gateway set statement_timeout = '2s';
alter role mlpa_gateway set idle_in_transaction_session_timeout = '4s';
alter role mlpa_gateway set client_connection_check_interval = '200ms';

select format('create database %I', name) from unnest(array[:'database', :'litellm_database']) as name
where not exists (select from pg_database where datname = name) \gexec
alter database :"database" owner to mlpa_owner;
alter database :"litellm_database" owner to litellm;
revoke all on database :"database", :"litellm_database" from public;
grant connect on database :"database" to mlpa_auth, mlpa_gateway, mlpa_monitor;

\connect :database
alter schema public owner to mlpa_owner;
revoke all on schema public from public;
select format('alter table public.%I owner to mlpa_owner', relname) from pg_class
where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm') and relowner <> 'mlpa_owner'::regrole \gexec
select format('alter function public.%I(%s) owner to mlpa_owner', proname, pg_get_function_identity_arguments(oid))
from pg_proc where pronamespace = 'public'::regnamespace and proowner <> 'mlpa_owner'::regrole
    and not exists (select from pg_depend where classid = 'pg_proc'::regclass and objid = pg_proc.oid and deptype = 'e') \gexec

\connect :litellm_database
alter schema public owner to litellm;
revoke all on schema public from public;
select format('alter table public.%I owner to litellm', relname) from pg_class
where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm') and relowner <> 'litellm'::regrole \gexec
select format('alter type public.%I owner to litellm', typname) from pg_type
where typnamespace = 'public'::regnamespace and typtype = 'e' and typowner <> 'litellm'::regrole \gexec
