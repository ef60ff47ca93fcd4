package export

import (
	"archive/tar"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/guest/identity"
)

// templateHostname is what a template is called; each sandbox gets a name of its own.
const templateHostname = "roost"

// replaced are the files that every life of a sandbox writes anew, as a template has them.
var replaced = map[string]func(old []byte) []byte{
	"etc/machine-id":  empty,
	"etc/resolv.conf": empty,
	"etc/hostname":    func([]byte) []byte { return []byte(templateHostname + "\n") },
	// All lines but the one that is the guest's.
	"etc/hosts": identity.UserHosts,
}

func empty([]byte) []byte { return nil }

// leftOut are the files that belong to one machine, and what the guest itself is about to write.
func leftOut(rel string, st *unix.Stat_t) bool {
	regular := st.Mode&unix.S_IFMT == unix.S_IFREG
	switch rel {
	case "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret", "var/lib/dbus/machine-id":
		return regular // a link to /etc/machine-id is none of its own
	case "run/roost":
		return true // generation, boot marker, sandbox id; elsewhere than here if /run is a mount
	}
	if temp, ok := strings.CutSuffix(rel, ".roost"); ok && (replaced[temp] != nil || isHostKey(temp)) {
		return true
	}
	if strings.HasPrefix(path.Base(rel), ".roost-upload-") {
		return regular
	}
	private, isPublic := strings.CutSuffix(rel, ".pub")
	return isPublic && isHostKey(private)
}

// isHostKey: SSH host keys stay as empty files. Their names tell the next life which to make.
func isHostKey(rel string) bool {
	ok, err := path.Match("etc/ssh/ssh_host_*_key", rel)
	return ok && err == nil
}

// standIn is the header of a file whose content is not the sandbox's.
func standIn(rel string, content []byte, mode int64) *tar.Header {
	return &tar.Header{
		Typeflag: tar.TypeReg, Name: rel, Mode: mode, Size: int64(len(content)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
	}
}
