package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/pressly/goose/v3"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // the database/sql driver "sqlite"

	"github.com/roosthq/roost/internal/fault"
)

//go:embed migrations/*.sql
var migrations embed.FS

// FileName is the database's name in the data directory.
const FileName = "roost.db"

const readers = 4

// Store is the control plane's database. It is safe for concurrent use.
type Store struct {
	write *bun.DB
	read  *bun.DB
	lock  *os.File
}

// OpenSQLite opens the database file, makes it (0600) when it is missing, and brings its
// schema up to date.
func OpenSQLite(ctx context.Context, path string) (*Store, error) {
	if err := makeFile(path); err != nil {
		return nil, fault.Wrap(err, "make database", path)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	s, err := open(path)
	if err != nil {
		return nil, errors.Join(fault.Wrap(err, "open database", path), lock.Close())
	}
	s.lock = lock
	if err := migrate(ctx, s.write.DB); err != nil {
		return nil, errors.Join(fault.Wrap(err, "migrate database", path), s.Close())
	}
	if err := s.expireClaims(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// makeFile creates the file before SQLite does, which would use the umask; SQLite gives the
// -wal and -shm files the mode of the database.
func makeFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o600), f.Close())
}

// lockFile keeps a second control plane off the file: on SQLite there is one, which lets it
// end the claims of its predecessor at once.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(err, "open lock", path)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, errors.Join(fault.New(fault.FailedPrecondition, "lock", path, "another control plane uses this database").
			WithHint("stop it, or give this one another data directory"), f.Close())
	case err != nil:
		return nil, errors.Join(fault.Wrap(err, "lock", path), f.Close())
	}
	return f, nil
}

// expireClaims ends the claims of a process that died: nobody else can hold one here.
func (s *Store) expireClaims(ctx context.Context) error {
	for _, model := range []any{(*Sandbox)(nil), (*Template)(nil)} {
		_, err := s.write.NewUpdate().Model(model).
			Set("claim_deadline = 0").Set("version = version + 1").Where("claim_id <> ''").Exec(ctx)
		if err != nil {
			return fault.Wrap(err, "expire", "claims")
		}
	}
	return nil
}

func open(path string) (*Store, error) {
	w, err := sql.Open("sqlite", dsn(path, "_txlock=immediate"))
	if err != nil {
		return nil, err
	}
	w.SetMaxOpenConns(1)
	r, err := sql.Open("sqlite", dsn(path, "_pragma=query_only(1)"))
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	r.SetMaxOpenConns(readers)
	r.SetMaxIdleConns(readers)
	return &Store{
		write: bun.NewDB(w, sqlitedialect.New()),
		read:  bun.NewDB(r, sqlitedialect.New()),
	}, nil
}

// dsn puts busy_timeout first: switching to WAL itself takes a lock.
func dsn(path, extra string) string {
	u := url.URL{Scheme: "file", OmitHost: true, Path: path}
	return u.String() + "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)" +
		"&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)&" + extra
}

func migrate(ctx context.Context, db *sql.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, files)
	if err != nil {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

// Close ends all connections; the last one folds the write-ahead log into the file.
func (s *Store) Close() error {
	return errors.Join(s.read.Close(), s.write.Close(), s.lock.Close())
}

// notFound turns a missing row into a fault that names it.
func notFound(err error, op, object string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return fault.New(fault.NotFound, op, object, "there is none of that name")
	}
	return fault.Wrap(err, op, object)
}

// affected says whether a statement changed a row.
func affected(res sql.Result, err error) (bool, error) {
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n > 0, err
}
