"""Mnemonics, derivation and signatures against BIP-39, SLIP-10 and an independent implementation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mnemonic import Mnemonic
from slip10 import SLIP10  # type: ignore[import-untyped]  # ships no types

from consensus.address import encode_address
from consensus.crypto import H, verify
from wallet.accounts.keys import (
    COIN_TYPE,
    MAX_INDEX,
    ExtendedKey,
    SigningKey,
    account_key,
    account_path,
    clean_mnemonic,
    new_mnemonic,
    seed_of,
    verify_message,
)
from wallet.errors import WalletError

ABANDON = "abandon " * 11 + "about"

# From the reference vectors of BIP-39 (passphrase "TREZOR"): entropy, words, seed.
BIP39 = [
    (
        "00000000000000000000000000000000",
        ABANDON,
        "c55257c360c07c72029aebc1b53c05ed0362ada38ead3e3e9efa3708e53495531f09a6987599d18264c1e1c92f2cf141630c7a3c4ab7c81b"
        "2f001698e7463b04",
    ),
    (
        "7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f",
        "legal winner thank year wave sausage worth useful legal winner thank yellow",
        "2e8905819b8723fe2c1d161860e5ee1830318dbf49a83bd451cfb8440c28bd6fa457fe1296106559a3c80937a1c1069be3a3a5bd381ee626"
        "0e8d9739fce1f607",
    ),
    (
        "ffffffffffffffffffffffffffffffff",
        "zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo wrong",
        "ac27495480225222079d7be181583751e86f571027b0497b5b5d11218e0a8a13332572917f0f8e5a589620c6f15b11c61dee327651a14c34"
        "e18231052e48c069",
    ),
    (
        "808080808080808080808080808080808080808080808080",
        "letter advice cage absurd amount doctor acoustic avoid letter advice cage absurd amount doctor acoustic avoid "
        "letter always",
        "107d7c02a5aa6f38c58083ff74f04c607c2d2c0ecc55501dadd72d025b751bc27fe913ffb796f841c49b1d33b610cf0e91d3aa239027f5e9"
        "9fe4ce9e5088cd65",
    ),
    (
        "68a79eaca2324873eacc50cb9c6eca8cc68ea5d936f98787c60c7ebc74e6ce7c",
        "hamster diagram private dutch cause delay private meat slide toddler razor book happy fancy gospel tennis "
        "maple dilemma loan word shrug inflict delay length",
        "64c87cde7e12ecf6704ab95bb1408bef047c22db4cc7491c4271d170a1b213d20b385bc1588d9c7b38f1b39d415665b8a9030c9ec653d75e"
        "65f847d8fc1fc440",
    ),
    (
        "f585c11aec520db57dd353c69554b21a89b20fb0650966fa0a9d6f74fd989d8f",
        "void come effort suffer camp survey warrior heavy shoot primary clutch crush open amazing screen patrol group "
        "space point ten exist slush involve unfold",
        "01f5bced59dec48e362f2c45b5de68b9fd6c92c6634f44d6d40aab69056506f0e35524a518034ddc1192e1dacd32c1ed3eaa3c3b131c88ed"
        "8e7e54c49a5d0998",
    ),
]

# SLIP-10's test vectors 1 and 2 for ed25519, complete: path, chain code, private key, public key.
SEED_1 = "000102030405060708090a0b0c0d0e0f"
SEED_2 = (
    "fffcf9f6f3f0edeae7e4e1dedbd8d5d2cfccc9c6c3c0bdbab7b4b1aeaba8a5a2"
    "9f9c999693908d8a8784817e7b7875726f6c696663605d5a5754514e4b484542"
)
SLIP10_VECTORS = [
    (
        SEED_1,
        (),
        "90046a93de5380a72b5e45010748567d5ea02bbf6522f979e05c0d8d8ca9fffb",
        "2b4be7f19ee27bbf30c667b642d5f4aa69fd169872f8fc3059c08ebae2eb19e7",
        "a4b2856bfec510abab89753fac1ac0e1112364e7d250545963f135f2a33188ed",
    ),
    (
        SEED_1,
        (0,),
        "8b59aa11380b624e81507a27fedda59fea6d0b779a778918a2fd3590e16e9c69",
        "68e0fe46dfb67e368c75379acec591dad19df3cde26e63b93a8e704f1dade7a3",
        "8c8a13df77a28f3445213a0f432fde644acaa215fc72dcdf300d5efaa85d350c",
    ),
    (
        SEED_1,
        (0, 1),
        "a320425f77d1b5c2505a6b1b27382b37368ee640e3557c315416801243552f14",
        "b1d0bad404bf35da785a64ca1ac54b2617211d2777696fbffaf208f746ae84f2",
        "1932a5270f335bed617d5b935c80aedb1a35bd9fc1e31acafd5372c30f5c1187",
    ),
    (
        SEED_1,
        (0, 1, 2),
        "2e69929e00b5ab250f49c3fb1c12f252de4fed2c1db88387094a0f8c4c9ccd6c",
        "92a5b23c0b8a99e37d07df3fb9966917f5d06e02ddbd909c7e184371463e9fc9",
        "ae98736566d30ed0e9d2f4486a64bc95740d89c7db33f52121f8ea8f76ff0fc1",
    ),
    (
        SEED_1,
        (0, 1, 2, 2),
        "8f6d87f93d750e0efccda017d662a1b31a266e4a6f5993b15f5c1f07f74dd5cc",
        "30d1dc7e5fc04c31219ab25a27ae00b50f6fd66622f6e9c913253d6511d1e662",
        "8abae2d66361c879b900d204ad2cc4984fa2aa344dd7ddc46007329ac76c429c",
    ),
    (
        SEED_1,
        (0, 1, 2, 2, 1_000_000_000),
        "68789923a0cac2cd5a29172a475fe9e0fb14cd6adb5ad98a3fa70333e7afa230",
        "8f94d394a8e8fd6b1bc2f3f49f5c47e385281d5c17e65324b0f62483e37e8793",
        "3c24da049451555d51a7014a37337aa4e12d41e485abccfa46b47dfb2af54b7a",
    ),
    (
        SEED_2,
        (),
        "ef70a74db9c3a5af931b5fe73ed8e1a53464133654fd55e7a66f8570b8e33c3b",
        "171cb88b1b3c1db25add599712e36245d75bc65a1a5c9e18d76f9f2b1eab4012",
        "8fe9693f8fa62a4305a140b9764c5ee01e455963744fe18204b4fb948249308a",
    ),
    (
        SEED_2,
        (0,),
        "0b78a3226f915c082bf118f83618a618ab6dec793752624cbeb622acb562862d",
        "1559eb2bbec5790b0c65d8693e4d0875b1747f4970ae8b650486ed7470845635",
        "86fab68dcb57aa196c77c5f264f215a112c22a912c10d123b0d03c3c28ef1037",
    ),
    (
        SEED_2,
        (0, 2_147_483_647),
        "138f0b2551bcafeca6ff2aa88ba8ed0ed8de070841f0c4ef0165df8181eaad7f",
        "ea4f5bfe8694d8bb74b7b59404632fd5968b774ed545e810de9c32a4fb4192f4",
        "5ba3b9ac6e90e83effcd25ac4e58a1365a9e35a3d3ae5eb07b9e4d90bcf7506d",
    ),
    (
        SEED_2,
        (0, 2_147_483_647, 1),
        "73bd9fff1cfbde33a1b846c27085f711c0fe2d66fd32e139d3ebc28e5a4a6b90",
        "3757c7577170179c7868353ada796c839135b3d30554bbb74a4b1e4a5a58505c",
        "2e66aa57069c86cc18249aecf5cb5a9cebbfd6fadeab056254763874a9352b45",
    ),
    (
        SEED_2,
        (0, 2_147_483_647, 1, 2_147_483_646),
        "0902fe8a29f9140480a00ef244bd183e8a13288e4412d8389d140aac1794825a",
        "5837736c89570de861ebc173b1086da4f505d4adb387c6a1b1342d5e4ac9ec72",
        "e33c0f7d81d843c572275f287498e8d408654fdf0d1e065b84e2e6f157aab09b",
    ),
    (
        SEED_2,
        (0, 2_147_483_647, 1, 2_147_483_646, 2),
        "5d70af781f3a37b829f0d060924d5e960bdc02e85423494afc0b1a41bbe196d4",
        "551d333177df541ad876a60ea71f00447931c0a9da16f227c11ea080d7391b8d",
        "47150c75db263559a70d5778bf36abbab30fb061ad69f69ece61a72b0cfa4fc0",
    ),
]


@pytest.mark.parametrize(("entropy", "words", "seed"), BIP39)
def test_bip39_vectors(entropy: str, words: str, seed: str) -> None:
    assert clean_mnemonic(words) == words
    assert bytes(Mnemonic("english").to_entropy(words)).hex() == entropy
    assert seed_of(words, "TREZOR").hex() == seed


@pytest.mark.parametrize(("seed", "path", "chain_code", "private_key", "public_key"), SLIP10_VECTORS)
def test_slip10_vectors(seed: str, path: tuple[int, ...], chain_code: str, private_key: str, public_key: str) -> None:
    node = ExtendedKey.master(bytes.fromhex(seed)).descendant(path)
    assert node.chain_code.hex() == chain_code
    assert node.private_key.hex() == private_key
    assert SigningKey(node.private_key).public_key.hex() == public_key


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=16, max_size=64), st.lists(st.integers(0, MAX_INDEX), max_size=4))
def test_slip10_agrees_with_an_independent_implementation(seed: bytes, path: list[int]) -> None:
    node = ExtendedKey.master(seed).descendant(tuple(path))
    oracle = SLIP10.from_seed(seed, curve_name="ed25519").get_child_from_path([2**31 + index for index in path])
    assert (node.private_key, node.chain_code) == (oracle.privkey, oracle.chaincode)


def test_accounts_are_hardened_children_below_the_coin_type() -> None:
    assert COIN_TYPE == 0x54494C45
    assert account_path(7) == "m/44'/1414089797'/7'"
    oracle = SLIP10.from_seed(seed_of(ABANDON), curve_name="ed25519").get_child_from_path(account_path(7))
    assert account_key(ABANDON, 7).private_key == oracle.privkey


def test_the_account_of_known_words_never_changes() -> None:
    # People's backups depend on this path and this address form.
    assert encode_address(account_key(ABANDON).address, "tile") == "tile12mykc49ldrukg4aqm4hqwkfzna9hp4wec9wl6p"


@pytest.mark.parametrize("count", [12, 24])
def test_new_words_are_valid_and_fresh(count: int) -> None:
    first, second = new_mnemonic(count), new_mnemonic(count)
    assert len(first.split()) == count
    assert clean_mnemonic(first) == first
    assert first != second


def test_words_may_be_written_in_capitals_and_on_several_lines() -> None:
    assert clean_mnemonic("\n".join(ABANDON.upper().split()) + "\n") == ABANDON


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "this one 0"),
        ("abandon " * 11, "this one 11"),
        ("abandon " * 6 + "abandom " + "abandon " * 4 + "about", "word 7 is not in"),
        ("abandon " * 12, "checksum"),
        ("about " + "abandon " * 11, "checksum"),
    ],
)
def test_wrong_words_are_refused_without_being_repeated(words: str, complaint: str) -> None:
    with pytest.raises(WalletError, match=complaint) as caught:
        clean_mnemonic(words)
    assert caught.value.code == "mnemonic-invalid"
    assert "aband" not in caught.value.message


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200))
def test_a_signed_message_verifies_for_its_owner_only(private_key: bytes, message: bytes) -> None:
    key = SigningKey(private_key)
    signed = key.sign_message(message)
    assert verify_message(key.address, message, signed)
    assert not verify_message(key.address, message + b"\n", signed)
    assert not verify_message(account_key_of_nobody.address, message, signed)
    assert not verify_message(key.address, message, signed[:-1])
    assert not verify_message(key.address, message, signed[:-1] + bytes([signed[-1] ^ 1]))
    assert not verify_message(key.address, message, b"")


def test_a_message_signature_is_never_a_transaction_signature() -> None:
    key = SigningKey(bytes(32))
    body = b"genesis hash and transaction body"
    signature = key.sign_message(body)[32:]
    assert verify(key.public_key, H("tw/msg", body), signature)
    assert not verify(key.public_key, H("tw/tx", body), signature)
    # Nor can a message be chosen whose hash equals that of a transaction: what is signed is always a tagged hash.
    assert not verify(key.public_key, H("tw/tx", body), key.sign_message(H("tw/tx", body))[32:])


def test_a_key_shows_its_public_half_only() -> None:
    key = SigningKey(b"\x11" * 32)
    assert "11" * 32 not in repr(key)
    assert key.public_key.hex() in repr(key)
    assert "11" * 32 not in repr(ExtendedKey(b"\x11" * 32, b"\x11" * 32))


account_key_of_nobody = SigningKey(b"\xee" * 32)
