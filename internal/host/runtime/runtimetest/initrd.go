package runtimetest

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/cavaliergopher/cpio"
)

// bootConfig is /roost/boot.json of an initramfs, see package image.
type bootConfig struct {
	ControlToken string   `json:"control_token"`
	RootDevice   string   `json:"root_device"`
	Modules      []string `json:"modules"`
	Hostname     string   `json:"hostname"`
	Address      string   `json:"address"`
	Gateway      string   `json:"gateway"`
	DNS          string   `json:"dns"`
	MAC          string   `json:"mac"`
	DefaultUser  string   `json:"default_user"`
}

// writeInitrd packs the guest agent with its modules and configuration.
func (f fixtures) writeInitrd(to, token string) (err error) {
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	boot := bootConfig{
		ControlToken: token, RootDevice: "/dev/vda", Hostname: bootHostname, DefaultUser: defaultUser,
		Address: guestPrefix, Gateway: gatewayAddr, DNS: gatewayAddr, MAC: guestMAC,
	}
	w := cpio.NewWriter(out)
	for _, dir := range []string{"dev", "proc", "sys", "roost", "roost/modules"} {
		if err := w.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755}); err != nil {
			return err
		}
	}
	files := map[string]string{"init": f.guest}
	for _, m := range f.modules {
		name := filepath.Base(m)
		boot.Modules = append(boot.Modules, name)
		files["roost/modules/"+name] = m
	}
	for name, path := range files {
		if err := packFile(w, name, path); err != nil {
			return err
		}
	}
	data, err := json.Marshal(boot)
	if err != nil {
		return err
	}
	return errors.Join(pack(w, "roost/boot.json", data), w.Close())
}

func packFile(w *cpio.Writer, name, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return pack(w, name, data)
}

func pack(w *cpio.Writer, name string, data []byte) error {
	if err := w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | 0o700, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}
