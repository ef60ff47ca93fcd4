package identity

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// hostsMark ends the one line of /etc/hosts that is ours; the others are the user's.
const hostsMark = "# roost"

// WriteHostname puts name into /etc/hostname and our line of /etc/hosts below root.
func WriteHostname(root, name string) error {
	if err := WriteFile(filepath.Join(root, "etc/hostname"), []byte(name+"\n"), 0o644); err != nil {
		return err
	}
	path := filepath.Join(root, "etc/hosts")
	old, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return fault.Wrap(err, "read", path)
	}
	return WriteFile(path, []byte(hosts(string(old), name)), 0o644)
}

func hosts(old, name string) string {
	if strings.TrimSpace(old) == "" {
		old = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
	}
	users := string(UserHosts([]byte(old)))
	if users != "" && !strings.HasSuffix(users, "\n") {
		users += "\n"
	}
	return users + "127.0.1.1 " + name + " " + hostsMark + "\n"
}

// UserHosts is /etc/hosts without our line.
func UserHosts(old []byte) []byte {
	var out []byte
	for line := range bytes.Lines(old) {
		if !bytes.HasSuffix(bytes.TrimSpace(line), []byte(hostsMark)) {
			out = append(out, line...)
		}
	}
	return out
}

// WriteFile replaces a file in one step; an equal file is left alone, so that a restore
// dirties no block it need not.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fault.Wrap(err, "write", path)
	}
	temp := path + ".roost"
	_ = unix.Unlink(temp)
	if err := writeNew(temp, data, mode); err != nil {
		return fault.Wrap(err, "write", path)
	}
	if err := os.Rename(temp, path); err != nil {
		_ = unix.Unlink(temp)
		return fault.Wrap(err, "write", path)
	}
	return nil
}

func writeNew(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = unix.Unlink(path)
	}
	return err
}
