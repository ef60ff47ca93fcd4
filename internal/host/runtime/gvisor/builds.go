package gvisor

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

const (
	runscName   = "runsc"
	runscPrefix = "runsc-"
	guestName   = "roost-guest"
	guestPrefix = "guest-"
	hashCache   = "hashes.json"
)

// keptTime is the modification time of every kept guest agent: gVisor refuses to restore a
// program whose file has another one than at the checkpoint, and a file of the same content may
// have been made twice.
var keptTime = time.Unix(1_000_000_000, 0)

// builds keeps programs by their content.
type builds struct {
	dir string

	mu sync.Mutex
	// hashes of files that were hashed before, by what tells that they are unchanged.
	hashes map[string]string
	// held are the files that this process has started something with.
	held map[string]bool
}

// build is one runsc.
type build struct {
	hash string
	path string
}

// Find looks for runsc where New does when it is told no place, and tries nothing.
func Find() (string, error) { return find("") }

// find looks for runsc: at the place that is given, else at that of ROOST_RUNSC, else around.
func find(given string) (string, error) {
	if given == "" {
		given = os.Getenv("ROOST_RUNSC")
	}
	for _, path := range candidates(given) {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return filepath.Abs(path)
		}
	}
	where := "neither beside roost nor in PATH"
	if given != "" {
		where = "not at " + given
	}
	return "", fault.New(fault.FailedPrecondition, "find", runscName, where).
		WithHint("make runsc builds it; ROOST_RUNSC names another place")
}

func candidates(given string) []string {
	if given != "" {
		return []string{given}
	}
	var out []string
	if self, err := os.Executable(); err == nil {
		out = append(out, filepath.Join(filepath.Dir(self), runscName))
	}
	if path, err := exec.LookPath(runscName); err == nil {
		out = append(out, path)
	}
	return out
}

// openBuilds reads what is kept. Parents may be root's alone; the directories in it are entered
// by sandboxes' uids.
func openBuilds(dir string) (*builds, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(err, "make", "directory of builds")
	}
	b := &builds{dir: dir, hashes: map[string]string{}, held: map[string]bool{}}
	// A cache that cannot be read costs one hashing.
	if raw, err := os.ReadFile(filepath.Join(dir, hashCache)); err == nil {
		if json.Unmarshal(raw, &b.hashes) != nil {
			b.hashes = map[string]string{}
		}
	}
	return b, nil
}

func (b *builds) runsc(hash string) string {
	return filepath.Join(b.dir, runscPrefix+hash, runscName)
}
func (b *builds) guestDir(hash string) string { return filepath.Join(b.dir, guestPrefix+hash) }
func (b *builds) guest(hash string) string    { return filepath.Join(b.guestDir(hash), guestName) }

// install keeps a copy of the runsc at path.
func (b *builds) install(path string) (build, error) {
	hash, err := b.keep(path, b.runsc)
	return build{hash, b.runsc(hash)}, fault.Wrap(err, "keep", path)
}

// keepGuest keeps a copy of the guest agent at path and returns its hash.
func (b *builds) keepGuest(path string) (string, error) {
	hash, err := b.keep(path, b.guest)
	return hash, fault.Wrap(err, "keep", "guest agent "+path)
}

// keep copies path to where its hash says, unless it is there.
func (b *builds) keep(path string, place func(hash string) string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	hash, err := b.hash(path)
	if err != nil {
		return "", err
	}
	to := place(hash)
	b.held[to] = true
	if _, err := os.Stat(to); err == nil {
		return hash, nil
	}
	return hash, copyProgram(path, to)
}

// find is a kept build.
func (b *builds) find(hash string) (build, error) {
	path := b.runsc(hash)
	if _, err := os.Stat(path); err != nil {
		return build{}, fault.New(fault.FailedPrecondition, "find", "runsc build "+hash,
			"the capture was made with it, and it is not in "+b.dir).
			WithHint("put that runsc back as " + path + "; no other can load it, and nothing of the capture is lost")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held[path] = true
	return build{hash, path}, nil
}

// haveGuest says whether a guest agent that a capture names is kept.
func (b *builds) haveGuest(hash string) error {
	path := b.guest(hash)
	if _, err := os.Stat(path); err != nil {
		return fault.New(fault.FailedPrecondition, "find", "guest agent "+hash,
			"the capture was made with it, and it is not in "+b.dir).
			WithHint("put that roost-guest back as " + path)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held[path] = true
	return nil
}

// retire removes what is neither used, nor current, nor held by this process.
func (b *builds) retire(used map[string]bool, current string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return fault.Wrap(err, "list", "builds")
	}
	var errs []error
	for _, e := range entries {
		program := b.programIn(e.Name())
		if program == "" || program == current || used[program] || b.held[program] {
			continue
		}
		errs = append(errs, os.RemoveAll(filepath.Join(b.dir, e.Name())))
	}
	return fault.Wrap(errors.Join(errs...), "remove", "builds that nothing needs")
}

// programIn is the program that a directory of b keeps; "" for what is not one.
func (b *builds) programIn(dir string) string {
	switch {
	case strings.HasPrefix(dir, runscPrefix):
		return filepath.Join(b.dir, dir, runscName)
	case strings.HasPrefix(dir, guestPrefix):
		return filepath.Join(b.dir, dir, guestName)
	}
	return ""
}

// hash is the start of a file's SHA-256. A file that is the same by path, size, inode and times
// is not read again.
func (b *builds) hash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	st := info.Sys().(*syscall.Stat_t)
	key := fmt.Sprintf("%s %d %d %d %d", path, info.Size(), st.Ino, info.ModTime().UnixNano(), st.Ctim.Nano())
	if hash, ok := b.hashes[key]; ok {
		return hash, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	hash := hex.EncodeToString(h.Sum(nil))[:16]
	b.remember(path, key, hash)
	return hash, nil
}

// remember keeps one hash a path.
func (b *builds) remember(path, key, hash string) {
	for old := range b.hashes {
		if strings.HasPrefix(old, path+" ") {
			delete(b.hashes, old)
		}
	}
	b.hashes[key] = hash
	raw, err := json.Marshal(b.hashes)
	if err != nil {
		return
	}
	tmp := filepath.Join(b.dir, hashCache+".new")
	if os.WriteFile(tmp, raw, 0o600) == nil {
		_ = os.Rename(tmp, filepath.Join(b.dir, hashCache))
	}
}

// copyProgram makes to, which is whole whenever it is there.
func copyProgram(from, to string) (err error) {
	// The directory is bound into sandboxes, whose uids must enter it.
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.Chmod(filepath.Dir(to), 0o755); err != nil { // whatever the umask is
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	tmp := to + ".new"
	dst, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp))
		}
	}()
	_, err = io.Copy(dst, src)
	err = errors.Join(err, dst.Chmod(0o755), dst.Sync(), dst.Close(), os.Chtimes(tmp, keptTime, keptTime))
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, to); err != nil {
		return err
	}
	dir := filepath.Dir(to)
	return errors.Join(syncDir(dir), syncDir(filepath.Dir(dir))) // a capture may need it for years
}

func syncDir(dir string) error {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
