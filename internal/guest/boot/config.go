package boot

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/fault"
)

// Config is /roost/boot.json.
type Config struct {
	ControlToken string `json:"control_token"`
	// RootDevice is an ext4 block device, "/dev/vda".
	RootDevice string `json:"root_device"`
	// Modules are file names in /roost/modules, in the order to load them.
	Modules  []string `json:"modules"`
	Hostname string   `json:"hostname"`
	// Address of eth0 with its prefix, "10.171.0.2/30"; empty leaves eth0 alone.
	Address string `json:"address"`
	Gateway string `json:"gateway"`
	// MAC to give eth0; empty keeps its own.
	MAC         string            `json:"mac,omitempty"`
	DNS         string            `json:"dns"`
	DefaultUser string            `json:"default_user"`
	Envs        map[string]string `json:"envs,omitempty"`
}

func readConfig(path string) (Config, error) {
	var c Config
	data, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fault.Wrap(err, "parse", path)
	}
	if err := os.Remove(path); err != nil {
		return c, err
	}
	return c, c.Validate()
}

// Validate names the field that is wrong.
func (c Config) Validate() error {
	if c.ControlToken == "" {
		return wrong("control_token", "it is empty")
	}
	if !filepath.IsAbs(c.RootDevice) {
		return wrong("root_device", "'"+c.RootDevice+"' is not an absolute path")
	}
	for _, m := range c.Modules {
		if m != filepath.Base(m) {
			return wrong("modules", "'"+m+"' is not a plain file name")
		}
	}
	if c.Address == "" {
		return nil
	}
	if _, err := netip.ParsePrefix(c.Address); err != nil {
		return wrong("address", err.Error())
	}
	if c.Gateway != "" {
		if _, err := netip.ParseAddr(c.Gateway); err != nil {
			return wrong("gateway", err.Error())
		}
	}
	return nil
}

func wrong(field, cause string) error {
	return fault.New(fault.Invalid, "read boot.json", field, cause)
}
