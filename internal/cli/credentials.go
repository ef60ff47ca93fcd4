package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/roosthq/roost/internal/fault"
)

// credentials say which server to ask and with which key. The JSON form is client.json.
type credentials struct {
	URL string `json:"url"`
	Key string `json:"key"`
}

const setCredentials = "set ROOST_URL and ROOST_API_KEY, or give --url and --api-key"

// credentials finds the server and key, each from flag, environment, then files. A key from
// a file is used only for the server that the file names.
func (a *app) credentials() (credentials, error) {
	want := credentials{URL: firstOf(a.url, os.Getenv("ROOST_URL")), Key: firstOf(a.key, os.Getenv("ROOST_API_KEY"))}
	if want.URL != "" {
		clean, err := cleanURL(want.URL)
		if err != nil {
			return credentials{}, err
		}
		want.URL = clean
	}
	if want.URL != "" && want.Key != "" {
		return want, nil
	}
	return fromFiles(want)
}

func fromFiles(want credentials) (credentials, error) {
	var unreadable error
	for _, path := range credentialFiles() {
		found, err := readCredentials(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case errors.Is(err, fs.ErrPermission):
			unreadable = errors.Join(unreadable, err)
			continue
		case err != nil:
			return credentials{}, err
		}
		if want.URL != "" && want.URL != found.URL {
			continue
		}
		return credentials{URL: found.URL, Key: firstOf(want.Key, found.Key)}, nil
	}
	return credentials{}, missing(want, unreadable)
}

func missing(want credentials, unreadable error) error {
	switch {
	case unreadable != nil:
		return &fault.Error{Kind: fault.PermissionDenied, Err: unreadable,
			Hint: "run as the user that runs `roost up` (root), or " + setCredentials}
	case want.URL != "":
		return fault.New(fault.Unauthenticated, "", "", "no API key found for "+want.URL).
			WithHint("set ROOST_API_KEY or give --api-key; `roost key create NAME` makes one on the server")
	default:
		return fault.New(fault.Unauthenticated, "", "", "no server address and API key found").
			WithHint("start a server here with `roost up`, or " + setCredentials +
				`, or write {"url":…,"key":…} to ` + credentialFiles()[0])
	}
}

// credentialFiles are the places that are looked at, in order.
func credentialFiles() []string {
	config := os.Getenv("XDG_CONFIG_HOME")
	if config == "" {
		config = filepath.Join(os.Getenv("HOME"), ".config")
	}
	data := firstOf(os.Getenv("ROOST_DATA"), "/var/lib/roost")
	return []string{filepath.Join(config, "roost", "client.json"), filepath.Join(data, "client.json")}
}

func readCredentials(path string) (credentials, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return credentials{}, err
	}
	var found credentials
	if err := json.Unmarshal(text, &found); err != nil {
		return credentials{}, fmt.Errorf(`read %s: %w (it should be {"url":…,"key":…})`, path, err)
	}
	if found.URL == "" || found.Key == "" {
		return credentials{}, fmt.Errorf("read %s: url or key is missing", path)
	}
	found.URL, err = cleanURL(found.URL)
	if err != nil {
		return credentials{}, fmt.Errorf("read %s: %w", path, err)
	}
	return found, nil
}

// cleanURL makes one spelling of an address, so that two can be compared.
func cleanURL(text string) (string, error) {
	u, err := url.Parse(strings.TrimSpace(text))
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return "", &exitError{code: exitUsage, err: fault.New(fault.Invalid, "", "", fmt.Sprintf("%q is no server address", text)).
			WithHint("it looks like http://127.0.0.1:8080")}
	}
	return u.Scheme + "://" + u.Host + strings.TrimRight(u.Path, "/"), nil
}

func firstOf(texts ...string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}
