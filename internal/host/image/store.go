package image

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Store is one host's images. Several processes may use the same store; methods are safe for
// concurrent use.
type Store struct {
	dir string
	log *slog.Logger
}

const (
	blobsDir     = "blobs"
	templatesDir = "templates"
	manifestsDir = "manifests"
	warmDir      = "warm"
	initrdDir    = "initrd"
	stageDir     = "stage"
	lockFile     = "lock"
)

// Open makes the store when it is missing, completes what was published and removes what
// dead processes left.
func Open(dir string, log *slog.Logger) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fail(err, "open image store", dir)
	}
	for _, sub := range []string{blobsDir, templatesDir, manifestsDir, warmDir, initrdDir, stageDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fail(err, "open image store", dir)
		}
	}
	s := &Store{dir: dir, log: log}
	if err := s.locked(s.recover); err != nil {
		return nil, fail(err, "open image store", dir)
	}
	return s, nil
}

// Dir is where the store lies.
func (s *Store) Dir() string { return s.dir }

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// locked runs f while no other process publishes into, stages in or recovers this store.
// Keep f short: builds and boots happen outside.
func (s *Store) locked(f func() error) error {
	lock, err := os.OpenFile(s.path(lockFile), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if err := flock(lock, syscall.LOCK_EX); err != nil {
		return errors.Join(err, lock.Close())
	}
	return errors.Join(f(), lock.Close())
}

func flock(f *os.File, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// recover brings the store to what its manifests say. It runs under the store's lock.
func (s *Store) recover() error {
	return errors.Join(s.completeManifests(), s.sweepStages(), s.sweepBlobs(), s.sweepTemporary())
}

// sweepStages removes stages whose owner is dead: the kernel dropped its lock with it, which,
// unlike a pid, can never be mistaken for another process.
func (s *Store) sweepStages() error {
	locks, err := filepath.Glob(s.path(stageDir, "*.lock"))
	if err != nil {
		return err
	}
	for _, lock := range locks {
		if err := s.sweepStage(lock); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) sweepStage(lock string) error {
	f, err := os.OpenFile(lock, os.O_RDWR|syscall.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its owner removed it since we listed it, which needs no lock of the store's
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := flock(f, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil // its owner lives
	}
	dir := strings.TrimSuffix(lock, ".lock")
	s.log.Warn("removing a stage that its owner left", "stage", dir)
	return errors.Join(os.RemoveAll(dir), removeIfThere(lock))
}

// sweepBlobs removes blobs that no manifest names: a publisher died before its commit point.
func (s *Store) sweepBlobs() error {
	named, err := s.namedBlobs()
	if err != nil {
		// A manifest that cannot be read may name any blob: remove none, and serve the others.
		s.log.Error("not sweeping blobs", "error", err)
		return nil
	}
	entries, err := os.ReadDir(s.path(blobsDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if named[e.Name()] {
			continue
		}
		s.log.Warn("removing a blob that no manifest names", "blob", e.Name())
		if err := os.RemoveAll(s.path(blobsDir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// sweepTemporary removes half-written manifests. They are written under the store's lock,
// which we hold, so whoever began these is dead.
func (s *Store) sweepTemporary() error {
	for _, dir := range []string{templatesDir, manifestsDir} {
		left, err := filepath.Glob(s.path(dir, ".new-*"))
		if err != nil {
			return err
		}
		for _, path := range left {
			if err := removeIfThere(path); err != nil {
				return err
			}
		}
	}
	return nil
}
