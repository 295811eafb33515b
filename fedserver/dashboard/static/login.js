// The link that the server prints carries the token after its #, which no server ever sees.
const token = location.hash.slice(1);
if (token) {
  history.replaceState(null, "", location.pathname);
  document.getElementById("token").value = token;
  document.querySelector("form").requestSubmit();
}
