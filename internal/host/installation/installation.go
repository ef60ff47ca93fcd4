// Package installation is what makes this Roost this one: a four-character id that every name
// on the host carries, and a block of uids. Both are made once and kept in installation.json.
// One agent at a time holds an installation: it keeps a lock that ends with its process.
package installation

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"math/big"
	"os"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/uids"
)

// Installation is one Roost on one host.
type Installation struct {
	ID   string     `json:"id"`
	UIDs uids.Block `json:"uid_block"`

	lock *os.File
}

const idAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"

// Open makes the data directory and the installation when they are missing, and takes the
// lock. Close gives it back.
func Open(data paths.Data) (*Installation, error) {
	if err := data.Validate(); err != nil {
		return nil, fault.New(fault.Invalid, "open", "installation", err.Error()).WithHint("choose a shorter --data")
	}
	if err := os.MkdirAll(string(data), 0o700); err != nil {
		return nil, fault.Wrap(err, "make", "data directory")
	}
	lock, err := takeLock(data)
	if err != nil {
		return nil, err
	}
	in, err := load(data)
	if errors.Is(err, os.ErrNotExist) {
		in, err = create(data)
	}
	if err != nil {
		return nil, errors.Join(fault.Wrap(err, "open", "installation "+string(data)), lock.Close())
	}
	in.lock = lock
	return in, nil
}

// Close gives the lock back.
func (in *Installation) Close() error { return in.lock.Close() }

func takeLock(data paths.Data) (*os.File, error) {
	f, err := os.OpenFile(data.AgentLock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fault.Wrap(err, "open", "agent lock")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fault.New(fault.FailedPrecondition, "lock", string(data), "another roost runs on it").
			WithHint("stop that one, or use another --data")
	}
	return f, nil
}

func load(data paths.Data) (*Installation, error) {
	raw, err := os.ReadFile(data.Installation())
	if err != nil {
		return nil, err
	}
	in := &Installation{}
	return in, json.Unmarshal(raw, in)
}

func create(data paths.Data) (*Installation, error) {
	in := &Installation{UIDs: uids.NewBlock(int(random(uids.Blocks)))}
	for range 4 {
		in.ID += string(idAlphabet[random(int64(len(idAlphabet)))])
	}
	raw, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	tmp := data.Installation() + ".tmp"
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return nil, err
	}
	return in, os.Rename(tmp, data.Installation())
}

func random(n int64) int64 {
	v, err := rand.Int(rand.Reader, big.NewInt(n))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return v.Int64()
}
