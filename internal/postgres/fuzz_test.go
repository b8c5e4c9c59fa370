package postgres_test

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"github.com/stepfleet/stepfleet/internal/postgres"
)

// password is what no message may repeat. It has what makes a URL hard to read.
const password = "c4nary"

// FuzzDSN opens and migrates with addresses that have a password somewhere. Neither says it in an
// error: those are logged. Nothing is connected to: Open makes no call, and Migrate has no time left.
func FuzzDSN(f *testing.F) {
	for _, dsn := range []string{
		"postgres://user:PASSWORD@127.0.0.1:1/db", "postgres://user:PASSWORD@127.0.0.1:x/db", "postgres://user:PASSWORD@[::1/db",
		"host=127.0.0.1 password=PASSWORD port=x", "host=127.0.0.1 password='PASSWORD port=1", "postgresql+psycopg2://user:PASSWORD@127.0.0.1/db",
		"postgres://user:%zz:PASSWORD@127.0.0.1/db", "postgres://127.0.0.1/db?password=PASSWORD&port=x", "postgres://user:PASSWORD@127.0.0.1/db?sslmode=x",
		"password=PASSWORD", "password = PASSWORD x", "postgres://us er:PASSWORD@127.0.0.1:1/db", "postgres://user:PASSWORD@127.0.0.1:1/db?connect_timeout=x",
		"postgres://127.0.0.1:1/db?default_query_exec_mode=PASSWORD", "postgres://user:a@b:PASSWORD@127.0.0.1:1,2,3/db", "\x00postgres://user:PASSWORD@h/",
		"host=127.0.0.1 passwordx=PASSWORD", "user:PASSWORD@127.0.0.1", "postgres://user:pa ss:PASSWORD@127.0.0.1:1/db", "host=a password=PASSWORD\\",
	} {
		f.Add(dsn)
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, password) || readsFiles(text) {
			t.Skip()
		}
		dsn := strings.ReplaceAll(text, "PASSWORD", password)
		ledger, err := postgres.Open(over, dsn, postgres.Options{})
		if err == nil {
			ledger.Close()
		}
		_, migrateErr := postgres.Migrate(over, dsn, postgres.Options{})
		for _, err := range []error{err, migrateErr} {
			if err != nil && isPassword(text) && strings.Contains(err.Error(), password) {
				t.Errorf("%q: the password is in the error: %v", dsn, err)
			}
		}
	})
}

// readsFiles reports whether libpq's syntax names a file to read in it, which fuzzers must not.
func readsFiles(text string) bool {
	for _, name := range []string{"sslcert", "sslkey", "sslrootcert", "passfile", "service"} {
		if strings.Contains(text, name) {
			return true
		}
	}
	return false
}

// isPassword reports whether a person who gave the text would call PASSWORD the password in it.
func isPassword(text string) bool {
	if u, err := url.Parse(text); err == nil && u.User != nil {
		given, _ := u.User.Password()
		return strings.Contains(given, "PASSWORD")
	}
	return strings.Contains(text, "password=PASSWORD") || strings.Contains(text, ":PASSWORD@")
}
