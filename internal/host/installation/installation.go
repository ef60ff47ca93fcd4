// Package installation is what makes this Roost this one: a four-character id that every name
// on the host carries, and a block of uids that no other Roost of the host has. Both are made
// once and kept in installation.json.
// One agent at a time holds an installation: it keeps a lock that ends with its process.
package installation

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"regexp"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/uids"
)

// Installation is one Roost on one host.
type Installation struct {
	ID   string     `json:"id"`
	UIDs uids.Block `json:"uid_block"`

	data paths.Data
	host string
	lock *os.File
}

const idAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"

// Open makes the data directory and the installation when they are missing, and takes the
// lock. Close gives it back.
func Open(data paths.Data) (*Installation, error) { return open(data, hostDir) }

func open(data paths.Data, host string) (*Installation, error) {
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
	in := &Installation{data: data, host: host, lock: lock}
	if err := withOwners(host, in.settle); err != nil {
		return nil, errors.Join(fault.Wrap(err, "open", "installation "+string(data)), lock.Close())
	}
	return in, nil
}

// settle reads or makes the installation and claims its block of uids. A block that another
// installation took after a reboot, when nothing of this one was running, is replaced.
func (in *Installation) settle(o owners) error {
	old, err := load(in.data)
	switch {
	case errors.Is(err, os.ErrNotExist):
		in.ID = newID()
	case err != nil:
		return err
	default:
		in.ID, in.UIDs = old.ID, old.UIDs
		if o.free(in.UIDs, in.data) {
			o[key(in.UIDs)] = in.data
			return nil
		}
	}
	if in.UIDs, err = o.pick(in.data, random(uids.Blocks)); err != nil {
		return err
	}
	raw, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return replace(in.data.Installation(), raw)
}

// Close gives the lock back.
func (in *Installation) Close() error { return in.lock.Close() }

// Forget gives the block of uids back; the caller knows that nothing runs under it.
func (in *Installation) Forget() error {
	return withOwners(in.host, func(o owners) error {
		if o[key(in.UIDs)] == in.data {
			delete(o, key(in.UIDs))
		}
		return nil
	})
}

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

var idForm = regexp.MustCompile(`^[a-z0-9]{4}$`)

func load(data paths.Data) (*Installation, error) {
	raw, err := os.ReadFile(data.Installation())
	if err != nil {
		return nil, err
	}
	in := &Installation{}
	if err := json.Unmarshal(raw, in); err != nil {
		return nil, fault.Wrap(err, "parse", data.Installation())
	}
	if !idForm.MatchString(in.ID) || !in.UIDs.Valid() {
		return nil, fault.New(fault.Internal, "read", data.Installation(), "it is damaged").
			WithHint("restore it from a backup, or start anew with another --data")
	}
	return in, nil
}

func newID() string {
	var id string
	for range 4 {
		id += string(idAlphabet[random(len(idAlphabet))])
	}
	return id
}

func random(n int) int {
	v, err := rand.Int(rand.Reader, big.NewInt(int64(n)))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return int(v.Int64())
}
