package installation

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/uids"
)

// hostDir holds what the installations of a host agree on: which of them has which block of
// uids. Were two to share one, each would end the other's VMs as strays. It lies in /run, since
// a reboot ends everything that has a uid.
const hostDir = "/run/roost"

const blocksFile = "uid-blocks.json"

// owners is the data directory that has a block.
type owners map[string]paths.Data

func key(b uids.Block) string { return strconv.Itoa(int(b)) }

// free says whether data may take the block.
func (o owners) free(b uids.Block, data paths.Data) bool {
	owner, taken := o[key(b)]
	return !taken || owner == data
}

// pick takes a block that no installation has and under which nothing runs, in an order that
// depends on start.
func (o owners) pick(data paths.Data, start int) (uids.Block, error) {
	for n := range uids.Blocks {
		b := uids.NewBlock(start + n)
		if !o.free(b, data) {
			continue
		}
		running, err := b.Running()
		if err != nil {
			return 0, err
		}
		if len(running) == 0 {
			o[key(b)] = data
			return b, nil
		}
	}
	return 0, fault.New(fault.ResourceExhausted, "take", "block of uids", "other installations have them all").
		WithHint("uninstall one: roost uninstall --data DIR")
}

// withOwners lets f read and change who has which block while nobody else does. Installations
// that are gone have none.
func withOwners(dir string, f func(owners) error) error {
	lock, err := lockDir(dir)
	if err != nil {
		return fault.Wrap(err, "lock", dir)
	}
	defer lock.Close()
	path := filepath.Join(dir, blocksFile)
	o := owners{}
	if raw, err := os.ReadFile(path); err == nil {
		_ = json.Unmarshal(raw, &o) // damaged: who runs is seen by who runs under a block
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for block, data := range o {
		in, err := load(data)
		if errors.Is(err, os.ErrNotExist) || err == nil && key(in.UIDs) != block {
			delete(o, block)
		}
	}
	if err := f(o); err != nil {
		return err
	}
	return saveOwners(dir, path, o)
}

func saveOwners(dir, path string, o owners) error {
	if len(o) == 0 {
		err := os.Remove(path)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			_ = os.Remove(dir) // unless somebody keeps something else there
			return nil
		}
		return err
	}
	raw, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return replace(path, raw)
}

// lockDir locks a directory, and makes it until the locked one is the one that has the name:
// the last installation to go removes it.
func lockDir(dir string) (*os.File, error) {
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		f, err := os.Open(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(err, f.Close())
		}
		mine, err := f.Stat()
		now, err2 := os.Stat(dir)
		if err == nil && err2 == nil && os.SameFile(mine, now) {
			return f, nil
		}
		_ = f.Close()
	}
}

// replace writes a file by rename, synced: an installation without its id is lost.
func replace(path string, data []byte) (err error) {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}
